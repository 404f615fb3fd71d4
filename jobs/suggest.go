package jobs

import (
	"slices"
	"strings"
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
		if room := maxEdits(key, target); len(key) <= len(target)+room && editDistance(key, target) <= room {
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
		if d := editDistance(name, candidate); d < least {
			best, least = candidate, d
		}
	}
	return best
}

// editDistance counts the letters to insert, delete, replace or transpose with their
// neighbor to get b from a (optimal string alignment).
func editDistance(a, b string) int {
	s, t := []rune(a), []rune(b)
	rows := make([][]int, len(s)+1)
	for i := range rows {
		rows[i] = make([]int, len(t)+1)
		rows[i][0] = i
	}
	for j := range t {
		rows[0][j+1] = j + 1
	}
	for i := 1; i <= len(s); i++ {
		for j := 1; j <= len(t); j++ {
			change := rows[i-1][j-1]
			if s[i-1] != t[j-1] {
				change++
			}
			rows[i][j] = min(change, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(s)][len(t)]
}
