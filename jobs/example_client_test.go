package jobs_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
)

// A producer that chooses the ID may repeat its call: the job is the same.
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
