package jobs

import (
	"slices"
	"strings"

	"github.com/danqing-queue/danqing/jobs/editdistance"
)

// suggestion returns the known name that an unknown one is probably a misspelling of, or
// "". Case, hyphens and underscores do not count. Short names allow few edits, so that a
// column "site" is not taken for "size".
func suggestion(name string, known []string) string {
	squash := strings.NewReplacer("_", "", "-", "", " ", "").Replace
	key := squash(strings.ToLower(strings.TrimSpace(name)))
	for _, k := range known {
		target := squash(k)
		// The length alone rules most out; a name may be a megabyte long.
		if room := maxEdits(key, target); len(key) <= len(target)+room && editdistance.Between(key, target) <= room {
			return k
		}
	}
	return ""
}

// maxEdits is how many edits may lie between a name and the known one that it misspells.
func maxEdits(name, known string) int {
	switch n := len(known); {
	case n <= 3:
		return 0
	case n == 4 && len(name) == n:
		sorted := func(s string) []byte { b := []byte(s); slices.Sort(b); return b }
		if slices.Equal(sorted(name), sorted(known)) {
			return 1
		}
		return 0
	case n <= 6:
		return 1
	}
	return 2
}

// closest returns the name with the smallest edit distance, or "" if that is more than
// half its length.
func closest(name string, names []string) string {
	best, least := "", len(name)/2+1
	for _, candidate := range names {
		if len(name) > 2*len(candidate) {
			continue
		}
		if d := editdistance.Between(name, candidate); d < least {
			best, least = candidate, d
		}
	}
	return best
}
