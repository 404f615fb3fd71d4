package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// What the service says of a model is compared with catalog, contract and configuration. What it
// does not say, or says in units that are not an image in yuan, is no finding.
func TestModelAnswers(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	image := func(micro ...int64) (prices []dashscope.OfferPrice) {
		for _, m := range micro {
			prices = append(prices, dashscope.OfferPrice{Micro: m, Unit: "image_number per image"})
		}
		return prices
	}
	for name, test := range map[string]struct {
		model    string
		offer    *dashscope.Offer
		limit    dashscope.Limit
		contract map[string]int64
		want     string // "" for no finding
	}{
		"as in the catalog":      {"wanx-v1", &dashscope.Offer{PricesMicroYuan: image(160_000)}, dashscope.Limit{Concurrency: 1, Requests: 120, Period: time.Minute}, nil, ""},
		"tells nothing":          {"wanx-v1", &dashscope.Offer{}, dashscope.Limit{}, nil, ""},
		"retires in 61 days":     {"wanx-v1", &dashscope.Offer{RetiresAt: now.Add(61 * 24 * time.Hour)}, dashscope.Limit{}, nil, ""},
		"retires in 60 days":     {"wanx-v1", &dashscope.Offer{RetiresAt: now.Add(60 * 24 * time.Hour)}, dashscope.Limit{}, nil, "wanx-v1 will be retired on 2027-01-30, in 60 days"},
		"retires tomorrow":       {"wanx-v1", &dashscope.Offer{RetiresAt: now.Add(24 * time.Hour)}, dashscope.Limit{}, nil, "in 1 day:"},
		"retired":                {"wanx-v1", &dashscope.Offer{RetiresAt: now}, dashscope.Limit{}, nil, "wanx-v1 was retired on 2026-12-01"},
		"not listed":             {"wanx-v1", nil, dashscope.Limit{}, nil, "not among the models"},
		"in dollars":             {"wanx-v1", &dashscope.Offer{PricesMicroYuan: []dashscope.OfferPrice{{Micro: 25_000, Unit: "USD per image"}}}, dashscope.Limit{}, nil, ""},
		"of tokens":              {"wanx-v1", &dashscope.Offer{PricesMicroYuan: []dashscope.OfferPrice{{Micro: 25_000, Unit: "input_token"}}}, dashscope.Limit{}, nil, ""},
		"dearer":                 {"wanx-v1", &dashscope.Offer{PricesMicroYuan: image(180_000)}, dashscope.Limit{}, nil, "the service says 0.18 yuan an image, the catalog 0.16 yuan"},
		"contract, list price":   {"wanx-v1", &dashscope.Offer{PricesMicroYuan: image(160_000)}, dashscope.Limit{}, map[string]int64{"wanx-v1": 120_000}, ""},
		"contract, its price":    {"wanx-v1", &dashscope.Offer{PricesMicroYuan: image(120_000)}, dashscope.Limit{}, map[string]int64{"wanx-v1": 120_000}, ""},
		"contract, other price":  {"wanx-v1", &dashscope.Offer{PricesMicroYuan: image(180_000)}, dashscope.Limit{}, map[string]int64{"wanx-v1": 120_000}, "the catalog 0.16 yuan, and your contract (DANQING_PRICES) 0.12 yuan"},
		"tiers":                  {"qwen-image-3.0-pro", &dashscope.Offer{PricesMicroYuan: image(250_000, 500_000, 20_000)}, dashscope.Limit{}, nil, ""},
		"one tier":               {"qwen-image-3.0-pro", &dashscope.Offer{PricesMicroYuan: image(250_000)}, dashscope.Limit{}, nil, ""},
		"another tier":           {"qwen-image-3.0-pro", &dashscope.Offer{PricesMicroYuan: image(250_000, 600_000)}, dashscope.Limit{}, nil, "the service says 0.25 or 0.60 yuan an image, the catalog 0.25 or 0.50 or 0.02 yuan"},
		"fewer tasks":            {"qwen-image", &dashscope.Offer{}, dashscope.Limit{Concurrency: 1}, nil, "the service runs 1 task at once, and 2 are in the catalog"},
		"more tasks":             {"qwen-image", &dashscope.Offer{}, dashscope.Limit{Concurrency: 9}, nil, "the service runs 9 tasks at once, the catalog says 2"},
		"a lower rate":           {"qwen-image", &dashscope.Offer{}, dashscope.Limit{Requests: 100, Period: time.Minute}, nil, "the service accepts 100 a minute, and Danqing sends up to 2 a second"},
		"as low as in a minute":  {"qwen-image-3.0-pro", &dashscope.Offer{}, dashscope.Limit{Requests: 5, Period: time.Minute}, nil, ""},
		"lower than in a minute": {"qwen-image-3.0-pro", &dashscope.Offer{}, dashscope.Limit{Requests: 4, Period: time.Minute}, nil, "accepts 4 a minute, and Danqing sends up to 0.0833 a second"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, err := jobs.LookupModel(test.model)
			require.NoError(t, err)
			told := &answers{
				account: config.Account{Name: "a", Lanes: []config.Lane{{Model: "wanx-v1", Concurrency: 1}}, PricesMicroYuan: test.contract},
				offers:  map[string]dashscope.Offer{}, complete: true, limits: map[string]dashscope.Limit{m.Name: test.limit},
			}
			if test.offer != nil {
				told.offers[m.Name] = *test.offer
			}
			found := told.of(m, now).Findings
			if test.want == "" {
				assert.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			assert.Contains(t, found[0].Text, test.want)
		})
	}
}

// Findings follow the table, each with its remedy; what was not told is a note.
func TestModelsCheckShowsFindings(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &program{stdout: &out}
	told := &answers{
		account: config.Account{Name: "default"}, untold: []string{"the service does not tell the account's limits: no"},
		offers: map[string]dashscope.Offer{"wanx-v1": {RetiresAt: time.Now().Add(-time.Hour)}},
	}
	require.NoError(t, p.printAnswers(told, false))
	table, findings, _ := strings.Cut(out.String(), "\nwarning")
	for line := range strings.SplitSeq(table, "\n") {
		assert.LessOrEqual(t, len(line), 80, line)
	}
	assert.Regexp(t, `\nwanx-v1 +- +- +- +- +20\d\d-\d\d-\d\d +-\n`, table)
	assert.Regexp(t, `^  wanx-v1 was retired on .*\n         → enqueue new jobs with another model.*\nnote     the service does not tell the account's limits: no\n$`, findings)
	out.Reset()
	require.NoError(t, p.printAnswers(told, true))
	assert.Contains(t, out.String(), `{"account":"default","not_told":"the service does not tell the account's limits: no"}`)
	assert.Contains(t, out.String(), `"findings":[{"severity":"warning","text":"wanx-v1 was retired on`)
	p.stdout = failing{}
	require.Error(t, p.printAnswers(told, false))
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("closed") }
