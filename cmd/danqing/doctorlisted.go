package main

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// listedAfter is the age from which a task should be on the list, which may lag behind. The
	// value is Danqing's choice. listedFor is how long a task certainly is on it: it leaves the
	// list after 24 hours.
	listedAfter, listedFor = 2 * time.Minute, 23 * time.Hour
)

// checkListed finds out whether the account's task list shows the tasks of a lane's model, unless
// that is documented: until it has shown one, a lost create of the model ends held. It is read by
// the model's name, as a lane reads it. Only a task of this queue proves it, and then the lane is
// told.
func (d *doctor) checkListed(ctx context.Context, a config.Account, l config.Lane, client *dashscope.Client) {
	m, err := jobs.LookupModel(l.Model)
	if err != nil || m.Protocol == jobs.ProtocolText2Image || d.jobs == nil {
		return
	}
	store := jobs.NewStore(d.redis)
	known, err := store.TasksListed(ctx, a.Name, m.Name)
	if err != nil {
		d.bad("let Redis's user read danqing:*", "account %s: %v", a.Name, err)
		return
	}
	if known {
		d.ok("account %s: the task list shows tasks of %s: lost creates are reconciled", a.Name, m.Name)
		return
	}
	last, err := d.lastTask(ctx, a.Name, m.Name)
	var shown string
	var whole bool
	if err == nil {
		shown, whole, err = d.ownTask(ctx, client, m, last.ID)
	}
	age := time.Since(last.At)
	switch {
	case err != nil:
		d.warn("ask again later", "account %s: it is not known whether the task list shows tasks of %s: %v", a.Name, m.Name, err)
	case shown != "":
		if err := store.SetTasksListed(ctx, a.Name, m.Name); err != nil {
			d.bad("let Redis's user write danqing:*", "account %s: %v", a.Name, err)
			return
		}
		d.ok("account %s: the task list shows task %s of %s: lost creates are reconciled from now on", a.Name, shown, m.Name)
	case last.ID != "" && age > listedAfter && age < listedFor && whole:
		d.note("before you resolve such a job, look for its task in the Model Studio (百炼) console",
			"account %s: the task list does not show task %s of %s, created %s ago: a lost create of this model ends held", a.Name, last.ID, m.Name, durationText(age.Truncate(time.Minute)))
	default:
		d.note("run doctor again some minutes after a task of it was created",
			"account %s: it is not known whether the task list shows tasks of %s, and until it has shown one a lost create ends held", a.Name, m.Name)
	}
}

// lastTask returns the task that the lane has created last, with its ID from the reply, in the last
// 24 hours; zero if there is none.
func (d *doctor) lastTask(ctx context.Context, account, model string) (task journal.CreatedTask, err error) {
	encoded, err := d.redis.Get(ctx, rediskey.Lane(account, model, rediskey.LaneLastTask)).Bytes()
	if errors.Is(err, redis.Nil) {
		return task, nil
	}
	if err == nil {
		err = json.Unmarshal(encoded, &task)
	}
	return task, err
}

// ownTask returns a task of the model on the account's list that is last, or has an owner in this
// queue, "" if there is none. whole reports whether the whole list was read.
func (d *doctor) ownTask(ctx context.Context, client *dashscope.Client, m jobs.Model, last string) (id string, whole bool, err error) {
	name, _ := m.NameIn(client.Region())
	tasks, _, err := listTasks(ctx, client, name)
	if err != nil {
		return "", false, err
	}
	var ids []string
	for _, task := range tasks {
		if task.ModelName == name {
			ids = append(ids, task.TaskID)
		}
	}
	owners, err := d.jobs.TaskOwners(ctx, ids)
	for _, id := range ids {
		if id == last || owners[id].Job != "" {
			return id, true, err
		}
	}
	return "", len(tasks) < listPages*listPage, err
}
