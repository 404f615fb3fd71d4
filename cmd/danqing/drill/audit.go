package drill

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// audit compares what the service made and charged with what lies in the bucket.
type audit struct {
	tasks, open int
	// microYuan is the cost of the drill's own tasks, foreignMicroYuan that of the
	// other program's.
	microYuan, foreignMicroYuan int64
	// charged counts the charged images, wanted those of each job's first charged task.
	charged, wanted int
	// delivered counts the images under their own key, held those only under _held/.
	delivered, held int
	// lost lists charged images that are nowhere in the bucket, paidTwice jobs charged
	// for more than one task, storedTwice images stored under two keys.
	lost, paidTwice, storedTwice []string
	// unlisted counts the images of tasks that no reply and no list has named; unlistedMicroYuan is
	// their cost, and heldMicroYuan what of it is of held jobs.
	unlisted                         int
	unlistedJobs                     map[string]bool
	unlistedMicroYuan, heldMicroYuan int64
	// unknown lists charged tasks that belong to no job, wrongContent images under a
	// job's key that show another job's request.
	unknown, wrongContent []string
}

// audit reads the service and the bucket as they are now.
func (d *drill) audit() (*audit, error) {
	b := &audit{unlistedJobs: map[string]bool{}}
	keys, err := d.inBucket()
	if err != nil {
		return nil, err
	}
	tasks := d.sim.Tasks()
	byJob := map[string][]simulator.Task{}
	for _, task := range tasks {
		if task.Request.Input.Prompt == foreignPrompt {
			b.foreignMicroYuan += task.ChargedMicroYuan
			continue
		}
		b.tasks++
		b.microYuan += task.ChargedMicroYuan
		if task.Status == dashscope.StatusPending || task.Status == dashscope.StatusRunning {
			b.open++
		}
		if task.Images > 0 {
			id := strings.TrimPrefix(task.Request.Input.Prompt, promptPrefix)
			byJob[id] = append(byJob[id], task)
		}
	}
	b.checkContent(byJob, keys)
	for _, j := range d.load.all() {
		id := j.request.ID
		b.addJob(j, byJob[id], keys, d.mayBeUnlisted(j))
		delete(byJob, id)
	}
	for id, tasks := range byJob {
		b.unknown = append(b.unknown, fmt.Sprintf("task %s belongs to no job (prompt of %q)", tasks[0].ID, id))
	}
	for _, names := range keys {
		if len(names) > 1 {
			b.storedTwice = append(b.storedTwice, strings.Join(names, " and "))
		}
	}
	slices.Sort(b.storedTwice)
	return b, nil
}

// checkContent verifies that the images under each job's keys show what the job
// requested.
func (b *audit) checkContent(byJob map[string][]simulator.Task, keys map[string][]string) {
	requestedBy := map[string]string{}
	for id, tasks := range byJob {
		for _, task := range tasks {
			for _, digest := range imageDigests(task) {
				requestedBy[digest] = id
			}
		}
	}
	for digest, names := range keys {
		for _, name := range names {
			if !strings.HasPrefix(name, "_held/") && !strings.HasPrefix(name, imageName(requestedBy[digest], "")) {
				b.wrongContent = append(b.wrongContent, fmt.Sprintf("%s shows the request of %q", name, requestedBy[digest]))
			}
		}
	}
	slices.Sort(b.wrongContent)
}

// imageName is the key of an image by the default template, up to a rest.
func imageName(id, rest string) string { return "single/" + id + "-" + rest }

// mayBeUnlisted reports whether a job is held because the outcome of its create is unknown and its
// model's tasks are in no list, or was canceled because the console shows its task.
func (d *drill) mayBeUnlisted(j job) bool {
	held := j.state() == jobs.StateHeld && j.record.Code == jobs.CodeSubmitAmbiguous
	return d.Unlisted && j.request.Model == editModel && (held || j.paid && j.state() == jobs.StateCanceled)
}

// addJob adds the charged tasks of a job, in the order of their creation.
func (b *audit) addJob(j job, tasks []simulator.Task, keys map[string][]string, unlisted bool) {
	id := j.request.ID
	if len(tasks) > 1 {
		names := make([]string, len(tasks))
		for i, task := range tasks {
			names[i] = task.ID
		}
		b.paidTwice = append(b.paidTwice, fmt.Sprintf("%s was charged for %d tasks: %s", id, len(tasks), strings.Join(names, ", ")))
	}
	for i, task := range tasks {
		b.charged += task.Images
		if i == 0 {
			b.wanted += task.Images
		}
		if unlisted {
			b.unlisted += task.Images
			b.unlistedMicroYuan += task.ChargedMicroYuan
			b.unlistedJobs[id] = true
			if j.state() == jobs.StateHeld {
				b.heldMicroYuan += task.ChargedMicroYuan
			}
			continue
		}
		for n, digest := range imageDigests(task) {
			names := keys[digest]
			own := imageName(id, strconv.Itoa(n)+".png")
			switch {
			case slices.Contains(names, own):
				b.delivered++
			case slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, "_held/") }):
				b.held++
			default:
				b.lost = append(b.lost, fmt.Sprintf("image %d of %s, task %s", n, id, task.ID))
			}
		}
	}
}

// imageDigests returns the SHA-256 of each image that a task made, by its number from
// 1. It renders the images again, so that it does not depend on what a worker reports.
func imageDigests(task simulator.Task) map[int]string {
	all := map[int]string{}
	outcome := outcomeOf(task)
	for i := range task.N {
		if outcome.Images[i].Code != "" {
			continue
		}
		sum := sha256.Sum256(render(painter.Picture{
			Model: task.Request.Model, Prompt: task.Request.Input.Prompt, Seed: task.Seeds[i], Index: i,
		}))
		number := i + 1
		if task.Request.Protocol == dashscope.ProtocolImageGeneration { // its answers have no place for a failed image
			number = len(all) + 1
		}
		all[number] = hex.EncodeToString(sum[:])
	}
	return all
}

// outcomeOf returns the outcome of a task that made an image.
func outcomeOf(task simulator.Task) simulator.Outcome {
	return newOutcomes(false).next(task.Request) // a first task that failed made no image
}

// inBucket returns the keys of all images in the bucket by their SHA-256.
func (d *drill) inBucket() (map[string][]string, error) {
	keys := map[string][]string{}
	root := filepath.Join(d.Dir, "bucket", bucket.DefaultBucket)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // replaced meanwhile
		}
		if err != nil || entry.IsDir() {
			return err
		}
		key, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		key = filepath.ToSlash(key)
		if strings.HasPrefix(key, "_jobs/") || strings.HasPrefix(key, "_refs/") || key == modeKey {
			return nil
		}
		content, err := os.ReadFile(path) //nolint:gosec // the drill's own folder
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		digest := hex.EncodeToString(sum[:])
		keys[digest] = append(keys[digest], key)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read bucket: %w", err)
	}
	return keys, nil
}

// idle returns the share of the time from a model's first create to its last in which
// it had no task, over all models. A job was always waiting in that time.
func (d *drill) idle() float64 {
	var idle, all time.Duration
	for _, model := range models() {
		var first, busyUntil, last time.Time
		for _, task := range d.sim.Tasks() {
			if task.Request.Model != model {
				continue
			}
			if first.IsZero() {
				first, busyUntil = task.CreatedAt, task.CreatedAt
			}
			idle += max(task.CreatedAt.Sub(busyUntil), 0)
			last = task.CreatedAt
			if task.EndedAt.After(busyUntil) {
				busyUntil = task.EndedAt
			}
		}
		all += last.Sub(first)
	}
	if all <= 0 {
		return 0
	}
	return float64(idle) / float64(all)
}

// withoutSidecar reports whether a job has no sidecar in the bucket.
func (d *drill) withoutSidecar(id string) bool {
	_, err := os.Stat(d.files.Path("_jobs/" + id + ".json"))
	return err != nil
}
