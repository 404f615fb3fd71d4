package worker_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/danqing-queue/danqing/worker/metrics"
	"github.com/danqing-queue/danqing/worker/metrics/metricstest"
)

const (
	alertRules     = "../cmd/danqing/monitoring/alerts.yml"
	scrapeInterval = time.Minute
)

// recording is what a Prometheus would have read in simulated time: a value of each series for
// each scrape. promtool evaluates the alert rules with it.
type recording struct {
	targets  []*target
	ofWorker *metrics.Metrics // of the stack's worker, the first target
	series   map[string][]string
	scrapes  int
}

// target is a process with metrics. It does not answer while registry is nil.
type target struct {
	instance string
	registry *prometheus.Registry
}

// watch scrapes the targets for a while.
func (r *recording) watch(t *testing.T, passed time.Duration) {
	t.Helper()
	for range int(passed / scrapeInterval) {
		<-time.After(scrapeInterval)
		r.scrape(t)
	}
}

func (r *recording) scrape(t *testing.T) {
	t.Helper()
	now := map[string]float64{}
	for _, target := range r.targets {
		labels := fmt.Sprintf(`instance=%q,job="danqing"`, target.instance)
		now["up{"+labels+"}"] = 0
		if target.registry != nil {
			now["up{"+labels+"}"] = 1
			gather(t, target.registry, labels, now)
		}
	}
	if r.series == nil {
		r.series = map[string][]string{}
	}
	for series := range now {
		if r.series[series] == nil {
			r.series[series] = slices.Repeat([]string{"_"}, r.scrapes)
		}
	}
	for series, values := range r.series {
		next := "_"
		if value, has := now[series]; has {
			next = strconv.FormatFloat(value, 'g', -1, 64)
		} else if r.scrapes > 0 && values[r.scrapes-1] != "_" && values[r.scrapes-1] != "stale" {
			next = "stale"
		}
		r.series[series] = append(values, next)
	}
	r.scrapes++
}

// gather adds the counters and gauges of a registry.
func gather(t *testing.T, registry *prometheus.Registry, labels string, now map[string]float64) {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "danqing_") {
			continue
		}
		for _, metric := range family.GetMetric() {
			var all strings.Builder
			all.WriteString(labels)
			for _, label := range metric.GetLabel() {
				if label.GetValue() != "" { // to Prometheus there is none
					fmt.Fprintf(&all, ",%s=%q", label.GetName(), label.GetValue())
				}
			}
			series := family.GetName() + "{" + all.String() + "}"
			switch {
			case metric.GetCounter() != nil:
				now[series] = metric.GetCounter().GetValue()
			case metric.GetGauge() != nil:
				now[series] = metric.GetGauge().GetValue()
			}
		}
	}
}

// firing are the alerts that must fire at the last scrape: their labels without alertname, and
// their summary.
type firing map[string][]alert

type alert struct {
	labels  map[string]string
	summary string
}

// requireAlerts checks with promtool which alerts fire at the last scrape, and which have fired at
// any time. The others must not have.
func (r *recording) requireAlerts(t *testing.T, want firing, ever ...string) {
	t.Helper()
	at := int(((time.Duration(r.scrapes) - 1) * scrapeInterval).Seconds())
	type sample struct {
		Labels string  `json:"labels"`
		Value  float64 `json:"value"`
	}
	type expected struct {
		Labels      map[string]string `json:"exp_labels"`
		Annotations map[string]string `json:"exp_annotations"`
	}
	var alertTests []map[string]any
	for name, annotations := range descriptions(t) {
		alerts := []expected{}
		for _, a := range want[name] {
			alerts = append(alerts, expected{a.labels, map[string]string{"summary": a.summary, "description": annotations}})
		}
		alertTests = append(alertTests, map[string]any{"eval_time": fmt.Sprintf("%ds", at), "alertname": name, "exp_alerts": alerts})
	}
	samples := []sample{}
	for _, name := range ever {
		samples = append(samples, sample{fmt.Sprintf(`{alertname=%q}`, name), 1})
	}
	input := []map[string]string{}
	for series, values := range r.series {
		input = append(input, map[string]string{"series": series, "values": runs(values)})
	}
	minutes := fmt.Sprintf("%dm", int(scrapeInterval.Minutes()))
	absolute, err := filepath.Abs(alertRules)
	require.NoError(t, err)
	text, err := json.Marshal(map[string]any{
		"rule_files": []string{absolute}, "evaluation_interval": minutes,
		"tests": []any{map[string]any{
			"interval": minutes, "input_series": input, "alert_rule_test": alertTests,
			"promql_expr_test": []any{map[string]any{
				"expr":      fmt.Sprintf(`max by (alertname) (max_over_time(ALERTS{alertstate="firing"}[%ds]))`, at+1),
				"eval_time": fmt.Sprintf("%ds", at), "exp_samples": samples,
			}},
		}},
	})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "test.yml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	metricstest.Promtool(t, "", "test", "rules", file)
}

// runs writes values in promtool's notation, equal ones in a row as one.
func runs(values []string) string {
	var text []string
	for i := 0; i < len(values); {
		end := i + 1
		for end < len(values) && values[end] == values[i] {
			end++
		}
		switch n := end - i; {
		case values[i] == "_":
			text = append(text, fmt.Sprintf("_x%d", n))
		case n == 1 || values[i] == "stale":
			text = append(text, values[i:end]...)
		default:
			text = append(text, fmt.Sprintf("%s+0x%d", values[i], n-1))
		}
		i = end
	}
	return strings.Join(text, " ")
}

// descriptions are those of the alerts in the shipped rules, by name.
func descriptions(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(alertRules)
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Annotations map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &file))
	byName := map[string]string{}
	for _, rule := range file.Groups[0].Rules {
		byName[rule.Alert] = rule.Annotations["description"]
	}
	require.Len(t, byName, 11)
	return byName
}

// value is that of a series of the stack's worker at the last scrape, "" if there is none.
func (r *recording) value(name, labels string) string {
	values := r.series[name+`{instance="worker:9464",job="danqing",`+labels+"}"]
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}
