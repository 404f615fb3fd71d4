package jobs_test

import (
	"strings"
	"testing"

	"github.com/danqing-queue/danqing/jobs"
)

// BenchmarkCheck measures what is done with a request before Redis is asked: checks,
// spelling and digest.
func BenchmarkCheck(b *testing.B) {
	req := jobs.Request{Prompt: strings.Repeat("一只白瓷茶杯", 40), Style: "摄影", Size: "1024x1024", N: 1}
	for b.Loop() {
		normal, _, err := req.Normalize()
		if err != nil || normal.Digest() == "" {
			b.Fatal(err)
		}
	}
}
