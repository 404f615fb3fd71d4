package dashboard

import (
	"io/fs"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// Every text is there in both languages, with the same values in it, and every text of a template
// is in the list.
func TestMessagesAreComplete(t *testing.T) {
	t.Parallel()
	verbs := regexp.MustCompile(`%(\[\d\])?[ds]`)
	chineseText := regexp.MustCompile(`\p{Han}`)
	for key, m := range messages() {
		require.NotEmpty(t, m[0], key)
		require.NotEmpty(t, m[1], key)
		assert.Len(t, verbs.FindAllString(m[1], -1), len(verbs.FindAllString(m[0], -1)), key)
		if key != "other_language" && key != "worker" {
			assert.NotRegexp(t, chineseText, m[0], key)
			assert.Regexp(t, chineseText, m[1], key)
		}
	}
	used := map[string]bool{}
	call := regexp.MustCompile(`[{(]t "([a-z_]+)"`)
	require.NoError(t, fs.WalkDir(files, "templates", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, path)
		for _, match := range call.FindAllStringSubmatch(string(text), -1) {
			used[match[1]] = true
			assert.Contains(t, messages(), match[1], path)
		}
		return err
	}))
	for _, state := range jobs.States() {
		assert.Contains(t, messages(), "state_"+string(state))
	}
	for _, action := range actions() {
		for _, kind := range []string{"ask_", "means_", "confirm_", "done_", "decided_"} {
			assert.Contains(t, messages(), kind+action)
		}
	}
	inCode := []string{"unavailable", "no_such_job", "corrupt_job", "bad_form", "job_changed", "just_now", "ago", "seconds", "minutes", "hours", "days"}
	events := []string{"enqueued", "submitted", "running", "generated", "attempt_ended", "cancel_requested"}
	for _, key := range append(inCode, events...) {
		used[key] = true
	}
	named := regexp.MustCompile(`^(state|hold|reason|notice|done|ask|means|confirm|decided)_`)
	for key := range messages() {
		assert.True(t, used[key] || named.MatchString(key), "nothing uses %s", key)
	}
}

// The policy forbids inline styles and scripts, and everything from elsewhere: no page has them.
func TestTemplatesFollowThePolicy(t *testing.T) {
	t.Parallel()
	forbidden := regexp.MustCompile(`(?i)<style|<script>|\sstyle=|\son[a-z]+=|https?://|javascript:|template\.HTML`)
	require.NoError(t, fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, path)
		assert.Empty(t, forbidden.FindAllString(strings.ReplaceAll(string(text), "http://www.w3.org/2000/svg", ""), -1), path)
		return err
	}))
	assert.NotContains(t, ContentSecurityPolicy, "unsafe")
}
