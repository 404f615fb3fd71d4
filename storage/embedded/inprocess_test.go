package embedded_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The in-process client behaves like one with a socket.
func TestHTTPClient(t *testing.T) {
	t.Parallel()
	server := open(t, t.TempDir())
	c := client(server)
	big := strings.Repeat("0123456789abcdef", 1<<20)
	require.NoError(t, put(t.Context(), c, "big", big))

	t.Run("a reader that stops early", func(t *testing.T) {
		out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: aws.String("big")})
		require.NoError(t, err)
		_, err = io.CopyN(io.Discard, out.Body, 10)
		require.NoError(t, err)
		require.NoError(t, out.Body.Close())
	})
	t.Run("a context that ends", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: bucketName, Key: aws.String("big")})
		require.NoError(t, err)
		cancel()
		_, err = io.Copy(io.Discard, out.Body)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, put(ctx, c, "late", "x"), context.Canceled)
		assert.NoFileExists(t, server.Path("late"))
	})
	t.Run("a context that ends while the body is read", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		body := &canceling{Reader: bytes.NewReader([]byte(big)), cancel: cancel}
		_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucketName, Key: aws.String("late"), Body: body, ContentLength: aws.Int64(int64(len(big)))}, s3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware))
		require.ErrorIs(t, err, context.Canceled)
		assert.NoFileExists(t, server.Path("late"))
	})
}

// canceling cancels a context after the first Read.
type canceling struct {
	*bytes.Reader

	cancel func()
}

func (c *canceling) Read(p []byte) (int, error) {
	defer c.cancel()
	return c.Reader.Read(p)
}
