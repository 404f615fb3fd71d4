package jobs

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/compactjson"
)

// Any value at a job's key is either a record of that job in a known state, which is written
// back unchanged, or it is refused with the job's ID.
func FuzzDecodeRecord(f *testing.F) {
	const moment = "2026-01-02T03:04:05.678901234Z"
	for _, text := range []string{
		`{"id":"a","state":"queued","digest":"d","model":"wanx-v1","priority":"default","attempt":0,"term":0,"enqueued_at":"` + moment + `","updated_at":"` + moment + `"}`,
		`{"id":"a","state":"storing","attempt":2,"term":7,"request":{"prompt":"一只白瓷茶杯","n":2,"seed":7},"task_id":"t","past_attempts":[{"attempt":1,"term":6,"submitted_at":"` + moment + `","ended_at":"` + moment + `"}],"results":[{"n":1,"url":"https://x/y?Expires=1","expires_at":"` + moment + `"},{"n":2,"code":"E"}]}`,
		`{"id":"a","state":"succeeded","images":[{"n":1,"key":"k","bytes":1,"sha256":"s"}],"cost_micro_yuan":160000,"warnings":["w"],"labels":{"sku":"A"},"cancel_requested_at":"` + moment + `"}`,
		`{"id":"a","state":"queued","enqueued_at":"` + moment + `"}`,
		`{"id":"b","state":"queued"}`, `{"id":"a"}`, `{"id":"a","state":"painting"}`, `{"id":"a","state":"queued","attempt":-1}`, `{"id":"a","state":"queued","attempt":"1"}`, `{"ID":"a","State":"held"}`, `null`, `[]`, `{`, ``,
	} {
		f.Add(text, "")
		f.Add(text, moment)
	}
	f.Add(`{"id":"a","state":"held"}`, "yesterday")
	f.Fuzz(func(t *testing.T, encoded, cancel string) {
		rec, err := decodeRecord("a", []string{encoded, cancel, "", "", "", "", "", ""})
		if err != nil {
			require.ErrorContains(t, err, "read record of a: ")
			require.NotErrorIs(t, err, ErrNotFound, "a corrupt record is not a missing one")
			return
		}
		require.Equal(t, "a", rec.ID)
		require.Contains(t, States(), rec.State)
		require.GreaterOrEqual(t, rec.Attempt, 0)
		if cancel != "" && !strings.HasPrefix(cancel, "0001-01-01") {
			require.False(t, rec.CancelRequestedAt.IsZero(), "the request to cancel is lost")
		}
		written, err := encodeRecord(rec)
		require.NoError(t, err)
		again, err := decodeRecord("a", []string{
			written, "", string(rec.State), strconv.Itoa(rec.Attempt), strconv.FormatInt(rec.Term, 10),
			rec.Digest, rec.Model + ":" + rec.Priority, rec.EnqueuedAt.Format(time.RFC3339Nano),
		})
		require.NoError(t, err)
		want, err := compactjson.Marshal(rec)
		require.NoError(t, err)
		got, err := compactjson.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	})
}
