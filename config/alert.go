package config

import (
	"slices"
	"strings"

	"github.com/danqing-queue/danqing/worker"
)

// alerts reads where alerts are sent. Its errors do not quote the URLs, which are secrets.
func (l *loader) alerts() {
	language, name := l.lookup("DANQING_ALERT_LANGUAGE")
	if !slices.Contains([]string{"", "en", "zh"}, language) {
		l.bad(name, "%q: must be en or zh", language)
	}
	list, name := l.lookup("DANQING_ALERT_URL")
	seen := map[string]bool{}
	for i, text := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
		receiver, err := worker.ParseAlertReceiver(text, language)
		switch {
		case err != nil:
			l.bad(name, "URL %d: %v", i+1, err)
		case !seen[receiver.ID]:
			seen[receiver.ID] = true
			l.cfg.Alerts = append(l.cfg.Alerts, receiver)
		}
	}
}
