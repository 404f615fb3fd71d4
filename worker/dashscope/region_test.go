package dashscope_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

func TestRegion(t *testing.T) {
	t.Parallel()
	for base, want := range map[string]string{
		"":                                      dashscope.RegionBeijing,
		"https://dashscope.aliyuncs.com/api/v1": dashscope.RegionBeijing,
		"https://dashscope-intl.aliyuncs.com/api/v1/":                   dashscope.RegionSingapore,
		"https://DashScope-Intl.aliyuncs.com.:443/api/v1":               dashscope.RegionSingapore,
		"https://dashscope-us.aliyuncs.com/api/v1":                      dashscope.RegionVirginia,
		"https://cn-hongkong.dashscope.aliyuncs.com/api/v1":             dashscope.RegionHongKong,
		"https://llm-1a2b.ap-southeast-1.maas.aliyuncs.com/api/v1":      dashscope.RegionSingapore,
		"https://llm-1a2b.cn-beijing.maas.aliyuncs.com/api/v1":          dashscope.RegionBeijing,
		"https://trial.eu-central-1.maas.aliyuncs.com/api/v1":           "eu-central-1",
		"https://llm-1a2b.ap-northeast-1.maas.aliyuncs.com/api/v1":      "ap-northeast-1",
		"http://127.0.0.1:9000/api/v1":                                  dashscope.RegionBeijing,
		"http://[::1]:9000/api/v1":                                      dashscope.RegionBeijing,
		"https://proxy.example.com/api/v1":                              dashscope.RegionBeijing,
		"https://dashscope-intl.aliyuncs.com.example.com/api/v1":        dashscope.RegionBeijing,
		"https://x.ap-southeast-1.maas.aliyuncs.com.example.com/api/v1": dashscope.RegionBeijing,
		"https://maas.aliyuncs.com/api/v1":                              dashscope.RegionBeijing,
		"https://ap-southeast-1.maas.aliyuncs.com/api/v1":               dashscope.RegionBeijing,
		"https://example.com/dashscope-intl.aliyuncs.com/api/v1":        dashscope.RegionBeijing,
	} {
		assert.Equal(t, want, dashscope.RegionOf(base), base)
		c, err := dashscope.New(dashscope.Config{BaseURL: base, APIKey: "sk-test"})
		require.NoError(t, err, base)
		assert.Equal(t, want, c.Region(), base)
	}
	assert.Empty(t, dashscope.RegionOf("dashscope-intl.aliyuncs.com"), "no base URL")
}
