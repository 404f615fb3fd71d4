package lane

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Each requested image is among the results of any task, with a link and its expiry or a
// reason, and all of them can be encoded.
func FuzzResults(f *testing.F) {
	for _, text := range []string{
		`{"output":{"results":[{"url":"http://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1d/86/a-1.png?Expires=1767323045&OSSAccessKeyId=k&Signature=a%2Bb%3D"},{"code":"DataInspectionFailed","message":"no"}]}}`,
		`{"output":{"results":[{"url":"https://x/y?Expires=-62135596800"},{"url":"?Expires=9223372036854775807"},{}]}}`,
		`{"output":{"results":[{"url":"http://a.aliyuncs.com:80/x"},{"url":"http://u:p@a.aliyuncs.com/x#f"},{"url":"http://aliyuncs.com.evil/x"}]}}`,
		`{"output":{"results":[{"url":"://"},{"url":"http://a.aliyuncs.com/%zz"},{"url":"http://[::1]/"},{"url":" "}]}}`,
		`{"output":{"results":null}}`, `{}`,
	} {
		f.Add([]byte(text), 2)
	}
	f.Fuzz(func(t *testing.T, text []byte, n int) {
		var task dashscope.Task
		if json.Unmarshal(text, &task.TaskResponse) != nil {
			return
		}
		n = max(0, n%5)
		most := max(n, 4)
		results := readResults(&task, n, most)
		require.Len(t, results, max(n, min(most, len(task.Output.Results))))
		for i, r := range results {
			require.Equal(t, i+1, r.N)
			if i >= len(task.Output.Results) {
				require.NotEmpty(t, r.Code)
				require.Empty(t, r.URL)
				continue
			}
			require.Equal(t, task.Output.Results[i].URL == "", r.URL == "")
			if r.URL != "" {
				require.WithinDuration(t, time.Now(), r.ExpiresAt, 367*24*time.Hour)
				requireSameLink(t, task.Output.Results[i].URL, r.URL)
			}
		}
		encoded, err := json.Marshal(results)
		require.NoError(t, err)
		var back []jobs.Result
		require.NoError(t, json.Unmarshal(encoded, &back))
		require.Len(t, back, len(results))
	})
}

// Images that are bought again get the numbers of those that the job lacks, also if a group has
// fewer of them: an image that exists keeps its number.
func TestRenumber(t *testing.T) {
	t.Parallel()
	numbers := func(made int, missing ...int) (n []int) {
		task := dashscope.Task{TaskResponse: dashscope.TaskResponse{Output: dashscope.TaskOutput{Results: make([]dashscope.Result, made)}}}
		for _, r := range renumber(readResults(&task, 0, 6), missing) {
			n = append(n, r.N)
		}
		return n
	}
	require.Equal(t, []int{2, 4}, numbers(2, 2, 4))
	require.Equal(t, []int{2}, numbers(1, 2, 4))
	require.Equal(t, []int{1, 2, 3}, numbers(3, 2, 4), "an adopted task made more")
}

// requireSameLink fails if a signed part of a link was changed, or any part of a link
// that is not Aliyun's.
func requireSameLink(t *testing.T, given, made string) {
	t.Helper()
	if given == made {
		return
	}
	was, err := url.Parse(given)
	require.NoError(t, err)
	is, err := url.Parse(made)
	require.NoError(t, err)
	require.Equal(t, "http", was.Scheme)
	require.True(t, strings.HasSuffix(was.Hostname(), ".aliyuncs.com"), given)
	require.Empty(t, was.Port())
	was.Scheme = "https"
	require.Equal(t, was.Host, is.Host)
	require.Equal(t, was.Path, is.Path)
	require.Equal(t, was.RawQuery, is.RawQuery)
	require.Equal(t, "https", is.Scheme)
}
