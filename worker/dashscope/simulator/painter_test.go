package simulator

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestDump(t *testing.T) {
	for i, s := range styles() {
		w, h := 1024, 1024
		if i%3 == 1 {
			w, h = 720, 1280
		} else if i%3 == 2 {
			w, h = 1280, 720
		}
		p := Picture{Model: "wanx-v1", Prompt: "近景镜头,18岁的中国女孩,古代服饰,圆脸,正面看着镜头,民族优雅的服装,商业摄影,室外,电影级光照,半身特写,精致的淡妆,锐利的边缘。 A small watercolour fox in the snow.", NegativePrompt: "不要使用红色元素", Style: s.name, Width: w, Height: h, Seed: 12345, N: 4, Index: 1}
		os.WriteFile(fmt.Sprintf("/tmp/p%d-%s.png", i, strings.Trim(strings.ReplaceAll(s.name, " ", "_"), "<>")), Paint(p), 0o600)
	}
	for i, st := range []float64{0, 0.5, 1} {
		p := Picture{Model: "wanx-v1", Prompt: "有一只黑色的小猫", Width: 1024, Height: 1024, Seed: 1, N: 1, Ref: standIn("https://help-static-aliyun-doc.aliyuncs.com/house.png"), RefStrength: st}
		os.WriteFile(fmt.Sprintf("/tmp/r%d.png", i), Paint(p), 0o600)
		p.RefMode = refOnly
		os.WriteFile(fmt.Sprintf("/tmp/o%d.png", i), Paint(p), 0o600)
	}
}

func BenchmarkPaint(b *testing.B) {
	for _, s := range styles() {
		p := Picture{Model: "wanx-v1", Prompt: strings.Repeat("近景镜头,18岁的中国女孩,", 20), Style: s.name, Width: 1024, Height: 1024, N: 1}
		b.Run(s.name, func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				p.Seed++
				n = len(Paint(p))
			}
			b.ReportMetric(float64(n), "bytes")
		})
	}
	b.Run("ref", func(b *testing.B) {
		p := Picture{Model: "wanx-v1", Prompt: strings.Repeat("近景镜头,18岁的中国女孩,", 20), Width: 1024, Height: 1024, N: 1, Ref: standIn("a"), RefStrength: 0.5}
		n := 0
		for b.Loop() {
			p.Seed++
			n = len(Paint(p))
		}
		b.ReportMetric(float64(n), "bytes")
	})
}
