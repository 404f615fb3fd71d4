package jobs_test

import (
	"errors"
	"fmt"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
)

// The error of a request has every field that the service would refuse.
func ExampleRequest_Normalize() {
	r, _, err := jobs.Request{Prompt: "有一只黑色的小猫", Style: "水彩", Size: "720x1280"}.Normalize()
	fmt.Println(r.Model, r.Style, r.Size, r.N, err)

	_, _, err = jobs.Request{Prompt: "有一只黑色的小猫", Size: "1000*1000", N: 9}.Normalize()
	var invalid *jobs.InvalidError
	if errors.As(err, &invalid) {
		for _, f := range invalid.Fields {
			fmt.Println(f)
		}
	}
	// Output:
	// wanx-v1 <watercolor> 720*1280 1 <nil>
	// size: "1000*1000"; allowed: 1024*1024, 720*1280, 768*1152, 1280*720
	// n: 9; allowed: 1 to 4
}

// Spellings do not change the digest.
func ExampleRequest_Digest() {
	short := jobs.Request{Prompt: "有一只黑色的小猫"}
	long := jobs.Request{ID: "cat", Prompt: "有一只黑色的小猫", Style: "<auto>", Size: "1024*1024", N: 1}
	fmt.Println(short.Digest())
	fmt.Println(short.Digest() == long.Digest())
	// Output:
	// e75ac4d3f6acbdea4c73ddb44af62c36609ff225ac43364758ad49bfeb3696c7
	// true
}

// The seed is derived from the job's ID, and always the same.
func ExampleRequest_WithSeed() {
	r := jobs.Request{Prompt: "有一只黑色的小猫"}
	fmt.Println(*r.WithSeed("wanx-v1.portrait").Seed)
	// Output: 1552482192
}

// Lines can lack an id, and have other columns.
func ExampleReadBatch() {
	file := `{"id": "A-17", "prompt": "有一只黑色的小猫", "shelf": 3}
{"prompt": "飞舞着金色的蝴蝶", "style": "中国画"}`
	batch, err := jobs.ReadBatch(strings.NewReader(file), jobs.BatchOptions{Name: jobs.BatchName("spring.jsonl")})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, line := range batch.Lines {
		fmt.Println(line.ID, line.Request.Style)
	}
	result, err := batch.Lines[0].Result(map[string]string{"state": "succeeded"})
	fmt.Println(string(result), err)
	// Output:
	// spring.A-17 <auto>
	// spring.飞舞着金色的蝴蝶-68f989112fcf <chinese painting>
	// {"id":"A-17","prompt":"有一只黑色的小猫","shelf":3,"danqing":{"state":"succeeded"}} <nil>
}

// A pair of names always has the same ID, and no other pair has it.
func ExampleBatchID() {
	fmt.Println(jobs.BatchID("spring", "A-17"))
	fmt.Println(jobs.BatchID("春季主图", "A-017"))
	fmt.Println(jobs.BatchID("2026 春季 (1)", "A-017"))
	// Output:
	// spring.A-17
	// 春季主图.A-017
	// 2026_春季_1-x49067d54ff22.A-017
}
