package jobs

import (
	"slices"
	"strings"
	"unicode"

	"github.com/danqing-queue/danqing/jobs/editdistance"
)

// suggestion returns the known name that an unknown one is probably a misspelling of, or
// "". Case, hyphens and underscores do not count. Short names allow few edits, so that a
// column "site" is not taken for "size".
func suggestion(name string, known []string) string {
	key := squashName(name)
	for _, k := range known {
		target := squashName(k)
		// The length is compared first: a name may be a megabyte long.
		if limit := maxEdits(key, target); len(key) <= len(target)+limit && editdistance.Between(key, target) <= limit {
			return k
		}
	}
	return ""
}

// squashName is a name without case, blanks, hyphens and underscores.
func squashName(name string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || unicode.IsSpace(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, name)
}

// maxEdits is the maximum edit distance of a misspelling from the known name.
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
	best, limit := "", len(name)/2+1
	for _, candidate := range names {
		if len(name) > 2*len(candidate) {
			continue
		}
		if d := editdistance.Between(name, candidate); d < limit {
			best, limit = candidate, d
		}
	}
	return best
}
