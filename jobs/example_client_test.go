package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
)

// A producer that chooses the ID can repeat the call: the job is the same.
func ExampleClient_Enqueue() {
	queue := embedded.Open() // a real one: redis.NewClient
	defer queue.Close()      //nolint:errcheck // the example ends
	client := jobs.NewClient(queue.Client())
	ctx := context.Background()

	request := jobs.Request{ID: "sku-17", Prompt: "一只白瓷茶杯", Style: "摄影"}
	for range 2 {
		job, err := client.Enqueue(ctx, request)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(job.ID, job.State)
	}

	request.Prompt = "一只红色茶杯"
	_, err := client.Enqueue(ctx, request)
	fmt.Println(errors.Is(err, jobs.ErrDigestConflict))
	// Output:
	// sku-17 queued
	// sku-17 queued
	// true
}

// A service passes its own go-redis client. There is nothing else to set up, and only that
// client to close.
func ExampleNewClient() {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
	defer rdb.Close() //nolint:errcheck // the example ends
	client := jobs.NewClient(rdb)
	fmt.Println(client != nil)
	// Output: true
}

// An idempotency key is any text. An order is paid for once, even if its handler runs several
// times.
func ExampleIdempotencyID() {
	queue := embedded.Open() // a real one: redis.NewClient
	defer queue.Close()      //nolint:errcheck // the example ends
	client := jobs.NewClient(queue.Client())

	for range 2 {
		job, err := client.Enqueue(context.Background(), jobs.Request{
			ID: jobs.IdempotencyID("orders", "order 4711/cover"), Prompt: "一只白瓷茶杯",
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(job.ID)
	}
	// Output:
	// key-db6db17a47a2172a5fcff265e17e2a8a
	// key-db6db17a47a2172a5fcff265e17e2a8a
}

// Times, a callback and a follow-up of a job.
func ExampleRequest() {
	queue := embedded.Open() // a real one: redis.NewClient
	defer queue.Close()      //nolint:errcheck // the example ends
	client := jobs.NewClient(queue.Client())

	tonight := time.Now().Add(8 * time.Hour)
	job, err := client.Enqueue(context.Background(), jobs.Request{
		ID: "sku-17", Prompt: "一只白瓷茶杯,商业摄影", N: 2,
		Priority:  jobs.PriorityBulk,
		NotBefore: tonight,                     // off-peak
		Deadline:  tonight.Add(10 * time.Hour), // later it is not wanted, nor paid for
		Labels:    map[string]string{"sku": "A-17"},
		Callback:  "https://shop.example.com/hooks/images",
		FollowUp:  &jobs.FollowUp{Type: "image:ready", Queue: "shop"},
	})
	fmt.Println(job.State, err)
	// Output: scheduled <nil>
}

// Many jobs are checked before any is queued.
func ExampleClient_EnqueueAll() {
	queue := embedded.Open() // a real one: redis.NewClient
	defer queue.Close()      //nolint:errcheck // the example ends
	client := jobs.NewClient(queue.Client())

	requests := []jobs.Request{{ID: "cup", Prompt: "一只白瓷茶杯"}, {ID: "pot", Prompt: "一把紫砂壶", N: 9}}
	_, err := client.EnqueueAll(context.Background(), requests)
	fmt.Println(err)
	requests[1].N = 2
	records, err := client.EnqueueAll(context.Background(), requests)
	fmt.Println(len(records), err)
	// Output:
	// [1].n: 9; allowed: 1 to 4
	// 2 <nil>
}

// Wait returns when the job has ended or is held for an operator, or when its context ends.
func ExampleClient_Wait() {
	queue := embedded.Open() // a real one: redis.NewClient
	defer queue.Close()      //nolint:errcheck // the example ends
	client := jobs.NewClient(queue.Client())
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	job, err := client.Enqueue(ctx, jobs.Request{ID: "cat", Prompt: "有一只黑色的小猫"})
	if err != nil {
		fmt.Println(err)
		return
	}
	go client.Cancel(ctx, job.ID, jobs.Decider{}) //nolint:errcheck // stands for another process
	job, err = client.Wait(ctx, job.ID)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(job.State, job.Code)
	for _, image := range job.Images { // of a job that has succeeded
		fmt.Println(image.Key)
	}
	// Output: canceled Canceled
}

// A waiting job is canceled without cost; a running task is finished, and its images kept.
func ExampleClient_Cancel() {
	queue := embedded.Open() // a real one: redis.NewClient
	defer queue.Close()      //nolint:errcheck // the example ends
	client := jobs.NewClient(queue.Client())
	ctx := context.Background()

	if _, err := client.Enqueue(ctx, jobs.Request{ID: "cat", Prompt: "有一只黑色的小猫"}); err != nil {
		fmt.Println(err)
		return
	}
	job, err := client.Cancel(ctx, "cat", jobs.Decider{})
	switch {
	case errors.Is(err, jobs.ErrFinished), errors.Is(err, jobs.ErrInvalidState):
		fmt.Println("too late:", job.State)
	case err != nil:
		fmt.Println(err)
	case job.State == jobs.StateCanceled:
		fmt.Println(job.Message)
	default:
		fmt.Println("cancel requested")
	}
	// Output: canceled on request while it waited; it cost nothing
}

// A dashboard subscribes to all changes, and reads all jobs again after it has missed some.
func ExampleClient_Subscribe() {
	queue := embedded.Open() // a real one: redis.NewClient
	defer queue.Close()      //nolint:errcheck // the example ends
	client := jobs.NewClient(queue.Client())
	ctx := context.Background()

	changes, err := client.Subscribe(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer changes.Close() //nolint:errcheck // the example ends
	if _, err := client.Enqueue(ctx, jobs.Request{ID: "cat", Prompt: "有一只黑色的小猫"}); err != nil {
		fmt.Println(err)
		return
	}
	id := <-changes.IDs()
	if id == "" {
		fmt.Println("read all jobs again")
	}
	job, err := client.Get(ctx, id)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(job.ID, job.State)
	// Output: cat queued
}

// A follow-up is a task for the service's own asynq server. After a crash it may arrive twice,
// with the same ID.
func ExampleEvent() {
	mux := asynq.NewServeMux()
	mux.HandleFunc("image:ready", func(_ context.Context, task *asynq.Task) error {
		var event jobs.Event
		if err := json.Unmarshal(task.Payload(), &event); err != nil {
			return fmt.Errorf("read event: %w: %w", err, asynq.SkipRetry)
		}
		for _, image := range event.Data.Images {
			fmt.Println(event.Type, event.Data.Labels["sku"], image.URL)
		}
		return nil
	})
	payload := `{"type":"job.succeeded","data":{"job_id":"cat","labels":{"sku":"A-17"},"images":[{"n":1,"url":"https://images.example.com/cat-1.png"}]}}`
	if err := mux.ProcessTask(context.Background(), asynq.NewTask("image:ready", []byte(payload))); err != nil {
		fmt.Println(err)
	}
	// Output: job.succeeded A-17 https://images.example.com/cat-1.png
}
