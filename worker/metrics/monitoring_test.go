package metrics_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/metrics/metricstest"
)

const monitoring = "../../cmd/danqing/monitoring/"

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(text)
}

// promtool accepts the alert rules and the configuration of Prometheus.
func TestPrometheusFiles(t *testing.T) {
	t.Parallel()
	metricstest.Promtool(t, "", "check", "rules", "--lint=all", "--lint-fatal", monitoring+"alerts.yml")
	metricstest.Promtool(t, "", "check", "config", "--syntax-only", monitoring+"prometheus.yml")
	assert.Contains(t, read(t, monitoring+"alerts.yml"), `up{job="danqing"}`)
	assert.Contains(t, read(t, monitoring+"prometheus.yml"), "job_name: danqing\n")
}

// dashboard has the parts of the dashboard that are tested.
type dashboard struct {
	Panels []struct {
		ID      int    `json:"id"`
		Title   string `json:"title"`
		Type    string `json:"type"`
		GridPos struct {
			H, W, X, Y int
		} `json:"gridPos"` //nolint:tagliatelle // Grafana's name
		Targets []struct {
			Expr       string            `json:"expr"`
			Datasource map[string]string `json:"datasource"`
		} `json:"targets"`
	} `json:"panels"`
}

// Every panel of the dashboard has a query that Prometheus accepts, of the data source that is
// provisioned, and a place of its own.
func TestDashboard(t *testing.T) {
	t.Parallel()
	var d dashboard
	require.NoError(t, json.Unmarshal([]byte(read(t, monitoring+"grafana/danqing.json")), &d))
	require.Greater(t, len(d.Panels), 30)
	var rules []map[string]string
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, panel := range d.Panels {
		assert.False(t, ids[panel.ID], "ID of %s", panel.Title)
		ids[panel.ID] = true
		assert.Equal(t, panel.Type == "row", len(panel.Targets) == 0, panel.Title)
		for x := range panel.GridPos.W {
			for y := range panel.GridPos.H {
				cell := [2]int{panel.GridPos.X + x, panel.GridPos.Y + y}
				assert.Empty(t, cells[cell], "%s lies on it", panel.Title)
				assert.Less(t, cell[0], 24, panel.Title)
				cells[cell] = panel.Title
			}
		}
		for _, target := range panel.Targets {
			rules = append(rules, map[string]string{"record": "test", "expr": target.Expr})
			assert.Contains(t, read(t, monitoring+"grafana/datasource.yml"), "uid: "+target.Datasource["uid"]+",")
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, text, 0o600))
	metricstest.Promtool(t, "", "check", "rules", "--lint=none", file)
}

var (
	selector = regexp.MustCompile(`(danqing_[a-z_]+)(?:\{([^}]*)\})?`)
	matched  = regexp.MustCompile(`([a-z_]+)[=!]~?"`)
	grouping = regexp.MustCompile(`\b(?:by|on) \(([a-z_, ]+)\)`)
)

// Rules and dashboard use metrics that exist, with labels that they have.
func TestQueriesUseExistingMetrics(t *testing.T) {
	t.Parallel()
	labels, all := map[string][]string{}, map[string]bool{"alertname": true, "instance": true, "job": true, "le": true}
	for row := range strings.Lines(table(t)) {
		cells := strings.Split(row, " | ")
		name := strings.Trim(cells[0], "| `")
		labels[name] = strings.Split(cells[1], ", ")
		for _, label := range labels[name] {
			all[label] = true
		}
	}
	for _, file := range []string{"alerts.yml", "grafana/danqing.json"} {
		text := strings.ReplaceAll(read(t, monitoring+file), `\"`, `"`)
		require.Regexp(t, selector, text)
		for _, found := range selector.FindAllStringSubmatch(text, -1) {
			name := regexp.MustCompile("_(bucket|sum|count)$").ReplaceAllString(found[1], "")
			require.Contains(t, labels, name, file)
			for _, label := range matched.FindAllStringSubmatch(found[2], -1) {
				assert.Contains(t, labels[name], label[1], "%s: label of %s", file, name)
			}
		}
		for _, found := range grouping.FindAllStringSubmatch(text, -1) {
			for label := range strings.SplitSeq(found[1], ", ") {
				assert.True(t, all[label], "%s: no metric has the label %s", file, label)
			}
		}
	}
}
