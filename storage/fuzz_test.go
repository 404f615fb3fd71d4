package storage_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

// Sidecar returns the job's own sidecar, ErrNotExist, or an error that leaves it
// open: garbage is never taken for a missing sidecar.
func FuzzSidecar(f *testing.F) {
	const none = `<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>`
	for _, body := range []string{
		none, strings.Replace(none, "NoSuchKey", "NoSuchBucket", 1), strings.Replace(none, "NoSuchKey", "AccessDenied", 1), "<html>404 page not found</html>", "", "null", "{}", `{"job_id":"b"}`, `{"job_id":7}`,
		`{"job_id":"a","digest":"d","state":"succeeded","request":{"prompt":"<水彩>"},"attempts":[{"attempt":1,"term":1,"task_id":"t"}],"images":[{"n":1,"state":"stored","key":"k","seed":7}]}`,
		`{"job_id":"a","state":"failed","attempts":[{"attempt":1,"task_id":"t"},{"attempt":2}],"created_at":"2026-01-02T03:04:05Z"}`,
		`{"job_id":"a","request":[1,{"x":"\ud800"}],"images":[null]}`, `{"job_id":"a","created_at":"yesterday"}`, `{"job_id":"a"`,
	} {
		for _, status := range []int{http.StatusOK, http.StatusForbidden, http.StatusNotFound} {
			f.Add(status, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		switch status {
		case http.StatusOK, http.StatusForbidden, http.StatusNotFound:
		default:
			return // the SDK retries other statuses, with delays
		}
		b := newBucket(t, storage.Config{
			Bucket: "images", Endpoint: "http://store.invalid", AccessKeyID: "id", SecretAccessKey: "hush-secret",
			HTTPClient: clientFunc(func(r *http.Request) (*http.Response, error) {
				return &http.Response{
					StatusCode: status, Status: strconv.Itoa(status), Request: r, Body: io.NopCloser(strings.NewReader(string(body))),
					Header: http.Header{"Content-Length": {strconv.Itoa(len(body))}}, ContentLength: int64(len(body)),
				}, nil
			}),
		})
		side, err := b.Sidecar(t.Context(), "a")
		if err != nil {
			require.NotContains(t, fmt.Sprint(err), "hush-secret")
			if status == http.StatusOK {
				require.ErrorIs(t, err, storage.ErrUnreadable)
			}
			if !strings.Contains(string(body), "NoSuchKey") && !strings.Contains(string(body), "NotFound") {
				require.NotErrorIs(t, err, storage.ErrNotExist)
			}
			return
		}
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, "a", side.JobID)
		written, err := json.Marshal(side)
		require.NoError(t, err)
		var again storage.Sidecar
		require.NoError(t, json.Unmarshal(written, &again))
		rewritten, err := json.Marshal(again)
		require.NoError(t, err)
		require.JSONEq(t, string(written), string(rewritten))
		require.Equal(t, side.TaskID(), again.TaskID())
	})
}
