package embedded_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Listings are in byte order, which is not the order of a folder walk, and pages of
// any size add up to the same list.
func TestList(t *testing.T) {
	t.Parallel()
	c := client(open(t, t.TempDir()))
	keys := []string{"a", "a-b", "a/b/c", "a/b/d", "a/e", "a0", "b/1", "b/2", "b!", "c", "春/1", "春/2"}
	for _, key := range keys {
		if key == "a" { // a file and a folder cannot have the same name
			continue
		}
		require.NoError(t, put(t.Context(), c, key, key))
	}
	keys = slices.Sorted(slices.Values(keys[1:]))
	for _, q := range []struct{ prefix, delimiter, after string }{
		{}, {prefix: "a"}, {prefix: "a/"}, {prefix: "a/b"}, {prefix: "zz"}, {prefix: "春/"}, {after: "a/b/c"}, {after: "b"},
		{delimiter: "/"}, {prefix: "a", delimiter: "/"}, {prefix: "a/", delimiter: "/"}, {prefix: "a/b/", delimiter: "/"},
		{delimiter: "-"}, {delimiter: "/b"}, {prefix: "b/1", delimiter: "/"}, {delimiter: "/", after: "a/"}, {delimiter: "/", after: "a/b/c"},
	} {
		var want []string
		for _, key := range keys {
			item := key
			if !strings.HasPrefix(key, q.prefix) {
				continue
			}
			if i := strings.Index(key[len(q.prefix):], q.delimiter); q.delimiter != "" && i >= 0 {
				item = key[:len(q.prefix)+i+len(q.delimiter)]
			}
			if item > q.after && !slices.Contains(want, item) {
				want = append(want, item)
			}
		}
		for _, size := range []int32{1, 2, 5, 1000} {
			input := &s3.ListObjectsV2Input{Bucket: bucketName, Prefix: &q.prefix, MaxKeys: &size}
			if q.delimiter != "" {
				input.Delimiter = &q.delimiter
			}
			if q.after != "" {
				input.StartAfter = &q.after
			}
			var got []string
			pages := s3.NewListObjectsV2Paginator(c, input)
			for pages.HasMorePages() {
				page, err := pages.NextPage(t.Context())
				require.NoError(t, err)
				assert.LessOrEqual(t, aws.ToInt32(page.KeyCount), size)
				for _, o := range page.Contents {
					got = append(got, *o.Key)
					assert.Equal(t, etag(*o.Key), *o.ETag)
					assert.EqualValues(t, len(*o.Key), *o.Size)
				}
				for _, p := range page.CommonPrefixes {
					got = append(got, *p.Prefix)
				}
			}
			slices.Sort(got)
			assert.Equal(t, want, got, "%+v in pages of %d", q, size)
		}
	}
}
