package config

import (
	"regexp"
	"slices"
	"strings"

	"github.com/danqing-queue/danqing/jobs/editdistance"
)

// kubernetesVariable matches the variables that Kubernetes sets for a service whose name
// begins with danqing.
var kubernetesVariable = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP)(_[A-Z]+)?)$`)

// checkNames reports misspelled and unknown DANQING_ variables.
func (l *loader) checkNames(environ []string) {
	for _, kv := range slices.Sorted(slices.Values(environ)) {
		name, _, _ := strings.Cut(kv, "=")
		upper := strings.ToUpper(name)
		if !strings.HasPrefix(upper, "DANQING_") || slices.Contains(variables(), name) || slices.Contains(l.referencedVariables, name) || kubernetesVariable.MatchString(upper) {
			continue
		}
		switch near := suggestVariable(upper); {
		case near == "":
			l.warn("%s is set, but Danqing does not use it", name)
		case near == upper && l.get(upper) != "": // Windows: names are case-insensitive
		default:
			l.bad(name, "is not a variable of Danqing: write %s", near)
		}
	}
}

// suggestVariable returns the variable that is closest to a misspelled DANQING_ name, or "".
func suggestVariable(name string) string {
	rest := strings.TrimPrefix(name, "DANQING_")
	if slices.Contains(variables(), rest) {
		return rest // DANQING_REDIS_URL
	}
	var names []string
	for _, v := range variables() {
		if known, ok := strings.CutPrefix(v, "DANQING_"); ok {
			names = append(names, known)
		}
	}
	near := closest(rest, names)
	if near == "" && len(rest) > 2 {
		near = shortestWith(rest, names)
	}
	if near == "" {
		return ""
	}
	return "DANQING_" + near
}

// shortestWith returns the shortest of the known names whose last words are these, the
// plural included, or "": DANQING_URL lacks a word of DANQING_SERVE_URL.
func shortestWith(words string, known []string) string {
	best := ""
	for _, k := range known {
		short := strings.HasSuffix(k, "_"+words) || strings.HasSuffix(k, "_"+words+"S")
		if short && (best == "" || len(k) < len(best)) {
			best = k
		}
	}
	return best
}

// closest returns the known word that is closest to a misspelled one, or "" if none is
// close enough.
func closest(word string, known []string) string {
	best, at := "", 0
	for _, k := range known {
		if d := editdistance.Between(word, k); d <= max(1, len(k)/3) && (best == "" || d < at) {
			best, at = k, d
		}
	}
	return best
}
