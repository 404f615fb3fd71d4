package worker_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

func tinyJPEG(p painter.Picture) []byte {
	p.Width, p.Height = 8, 8
	return painter.PaintJPEG(p)
}

func tinyWebP(p painter.Picture) []byte {
	p.Width, p.Height = 8, 8
	return painter.PaintWebP(p)
}

// labeledJPEG is tinyJPEG with an AI label in the first image of a task.
func labeledJPEG(p painter.Picture) []byte {
	content := tinyJPEG(p)
	if p.Index > 0 {
		return content
	}
	xmp := "http://ns.adobe.com/xap/1.0/\x00" + `<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description ` +
		`xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/"><TC260:AIGC>{"Label":"1"}</TC260:AIGC></rdf:Description></rdf:RDF>`
	app1 := append([]byte{0xFF, 0xE1, byte((len(xmp) + 2) >> 8), byte(len(xmp) + 2)}, xmp...)
	return slices.Insert(content, 2, app1...)
}

// Images are stored byte for byte, and their sidecar tells which of them bear an AI label.
func TestAILabelIsKeptAndRecorded(t *testing.T) {
	sim := &simulator.Simulator{Render: labeledJPEG}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		task := sim.Tasks()[0]
		for i, image := range s.requireStored("job-1", 2).Images {
			made := labeledJPEG(painter.Picture{Model: "wanx-v1", Prompt: "prompt of job-1", Style: "<auto>", Seed: task.Seeds[i], Index: i, N: 2})
			body, _, err := s.bucket.Get(t.Context(), image.Key)
			require.NoError(t, err)
			stored, err := io.ReadAll(body)
			require.NoError(t, err)
			require.NoError(t, body.Close())
			assert.Equal(t, made, stored)
			assert.Equal(t, []string{"present", "absent"}[i], image.AILabel)
		}
		s.requireRecorded(2)
	})
}

// The format of an image is found in its bytes: its URL and its Content-Type say PNG. Each is
// downloaded once, verified again after a restart, and stored after its link has expired.
func TestFormatIsFoundInTheBytes(t *testing.T) {
	for name, test := range map[string]struct {
		render func(painter.Picture) []byte
		ext    string
	}{"image/jpeg": {tinyJPEG, ".jpg"}, "image/webp": {tinyWebP, ".webp"}} {
		t.Run(name, func(t *testing.T) {
			sim := &simulator.Simulator{ResultLifetime: time.Hour, Render: test.render}
			bubble(t, sim, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
				s.state("job-1", jobs.StateGenerating)
				s.away.Store(true)
				s.state("job-1", jobs.StateStoring)
				<-time.After(2 * time.Hour)
				s.leave()
				s.comeBack("data")
				s.away.Store(false)
				rec := s.wait("job-1")
				require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
				assert.Equal(t, 2, sim.Stats().Requests[simulator.RouteResult])
				for _, image := range s.requireStored("job-1", 2).Images {
					assert.Equal(t, name, image.ContentType)
					assert.Equal(t, test.ext, filepath.Ext(image.Key))
					assert.Equal(t, []int{8, 8}, []int{image.Width, image.Height})
					info, err := s.bucket.Head(t.Context(), image.Key)
					require.NoError(t, err)
					assert.Equal(t, name, info.ContentType)
				}
				assert.Contains(t, rec.ImagePath(rec.Images[0]), "/images/job-1-1"+test.ext+"?")
				<-time.After(time.Minute)
				assert.Empty(t, s.spooled("data"))
			})
		})
	}
}

// A worker stops after the images are in the bucket and before the sidecar is, and loses its
// spool; then the links expire. The images are found, whatever their format is.
func TestImagesAreFoundWithoutSpoolAndLink(t *testing.T) {
	sim := &simulator.Simulator{ResultLifetime: time.Hour, Render: labeledJPEG}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.noSidecar.Store(true)
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
		s.state("job-1", jobs.StateStoring)
		<-time.After(time.Minute)
		s.leave()
		require.NoError(t, os.RemoveAll(filepath.Join(s.dir, "data", "spool")))
		<-time.After(2 * time.Hour)
		s.noSidecar.Store(false)
		s.comeBack("data")
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		for _, image := range s.requireStored("job-1", 2).Images {
			assert.Equal(t, "image/jpeg", image.ContentType)
			assert.Equal(t, ".jpg", filepath.Ext(image.Key))
			assert.Equal(t, 8, image.Width)
			assert.Equal(t, []string{"present", "absent"}[image.N-1], image.AILabel)
		}
		assert.Equal(t, "present", s.requireRecorded(2).Images[0].AILabel)
		assert.Len(t, sim.Tasks(), 1)
	})
}

type oneContent struct{ content []byte }

func (a oneContent) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Request: r, Body: io.NopCloser(bytes.NewReader(a.content)), ContentLength: int64(len(a.content))}, nil
}

// An earlier attempt's image stays, and the same image of another format, which a later attempt
// has made, is kept beside it: a job has one image of each number.
func TestImageOfAnEarlierAttemptInAnotherFormat(t *testing.T) {
	sim := &simulator.Simulator{Render: tinyJPEG, Outcome: outcomes(simulator.Outcome{Code: "InternalError", Message: "no"}, simulator.Outcome{Code: "DataInspectionFailed", Message: "no"})}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		require.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		spool, err := storage.OpenSpool(t.TempDir(), storage.SpoolConfig{Sources: []string{"http://early"}, Transport: oneContent{tinyPNG(painter.Picture{})}})
		require.NoError(t, err)
		file, err := spool.Fetch(t.Context(), "early", "http://early/a.png")
		require.NoError(t, err)
		key, err := s.bucket.ImageKey(storage.KeyVars{JobID: "job-1", N: 1})
		require.NoError(t, err)
		first := sim.Tasks()[0].ID
		require.NoError(t, s.bucket.PutImage(t.Context(), key, file, map[string]string{"task-id": first, "width": "8", "height": "8"}))

		s.retry()
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateSucceeded, rec.State)
		assert.Equal(t, key, rec.Images[0].Key)
		assert.Equal(t, "image/png", rec.Images[0].ContentType)
		_, err = s.bucket.Head(t.Context(), strings.TrimSuffix(key, ".png")+".jpg")
		require.ErrorIs(t, err, storage.ErrNotExist)
		held, err := s.bucket.HeldKeys(t.Context(), rec.TaskID)
		require.NoError(t, err)
		assert.Len(t, held, 1)
	})
}

// An image of a task without an owner is kept under the extension of its format, and without one
// if it has none.
func TestHeldImagesHaveTheExtensionOfTheirFormat(t *testing.T) {
	for ext, render := range map[string]func(painter.Picture) []byte{
		".jpg": tinyJPEG, "": func(painter.Picture) []byte { return []byte("GIF89a") },
	} {
		t.Run("extension "+ext, func(t *testing.T) {
			bubble(t, &simulator.Simulator{Render: render}, func(t *testing.T, s *stack) {
				s.foreignTask()
				task := s.sim.Tasks()[0].ID
				key := rediskey.Lane("default", jobs.DefaultModel, rediskey.LaneQuarantine)
				require.NoError(t, s.redis.HSet(t.Context(), key, task, `{"job_id":"job-0","attempt":1,"account":"default","model":"wanx-v1","task_id":"`+task+`"}`).Err())
				<-time.After(time.Hour)
				held, err := s.bucket.HeldKeys(t.Context(), task)
				require.NoError(t, err)
				require.NotEmpty(t, held)
				assert.Equal(t, s.bucket.HeldKey(task, task+"-1"+ext), held[0])
				spooled, err := filepath.Glob(filepath.Join(s.dir, "data", "spool", "*", task+"*"))
				require.NoError(t, err)
				assert.Empty(t, spooled)
			})
		})
	}
}
