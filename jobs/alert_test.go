package jobs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// An event that AlertEvents lacks would be sent without its text. The page for people has every
// event but the one of danqing alert test.
func TestAlertEventsAreComplete(t *testing.T) {
	t.Parallel()
	found := func(path, pattern string) (events []jobs.AlertEvent) {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, match := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			events = append(events, jobs.AlertEvent(match[1]))
		}
		return events
	}
	assert.ElementsMatch(t, found("alert.go", `\tAlert\w+ .*= "(.+?)"`), jobs.AlertEvents(), "the constants")
	page := found(filepath.Join("..", "cmd", "danqing", "docs", "alerts.md"), "(?m)^\\| `(.+?)` \\|")
	assert.ElementsMatch(t, append(page, jobs.AlertTest), jobs.AlertEvents(), "the page")
}
