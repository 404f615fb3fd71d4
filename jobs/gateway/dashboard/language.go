package dashboard

import (
	"cmp"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

const (
	english = "en"
	chinese = "zh"

	languageCookie = "danqing_language"
	// languageLifetime is as long as browsers keep a cookie at most.
	languageLifetime = 400 * 24 * time.Hour
)

func languages() []string { return []string{english, chinese} }

// languageOf returns the language of a request: the one that was chosen, else the browser's
// first of the two.
func languageOf(r *http.Request) string {
	if cookie, err := r.Cookie(languageCookie); err == nil && messageOf(cookie.Value, "overview") != "" {
		return cookie.Value
	}
	for wanted := range strings.SplitSeq(r.Header.Get("Accept-Language"), ",") {
		wanted = strings.ToLower(strings.TrimSpace(wanted))
		for _, known := range languages() {
			if strings.HasPrefix(wanted, known) {
				return known
			}
		}
	}
	return english
}

// SwitchLanguage keeps the language that a page's link names, and shows the page again. Other
// requests are for next.
func SwitchLanguage(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if language := r.URL.Query().Get("lang"); r.Method == http.MethodGet && messageOf(language, "overview") != "" {
			setLanguage(w, r, language)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func setLanguage(w http.ResponseWriter, r *http.Request, language string) {
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // no secret
		Name: languageCookie, Value: language, Path: "/", MaxAge: int(languageLifetime / time.Second), HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: r.TLS != nil,
	})
	query := r.URL.Query()
	query.Del("lang")
	back := url.URL{Path: r.URL.Path, RawQuery: query.Encode()}
	http.Redirect(w, r, "/"+strings.TrimLeft(back.String(), "/"), http.StatusSeeOther)
}

// messageOf returns a message in a language, "" if there is none.
func messageOf(language, key string) string {
	m := messages()[key]
	switch language {
	case english:
		return m[0]
	case chinese:
		return m[1]
	}
	return ""
}

// functions are those of the templates in a language.
func functions(language string) template.FuncMap {
	say := func(key string, args ...any) (string, error) {
		text := messageOf(language, key)
		if text == "" {
			return "", fmt.Errorf("there is no message %q in %s", key, language)
		}
		if len(args) > 0 {
			text = fmt.Sprintf(text, args...)
		}
		return text, nil
	}
	return template.FuncMap{
		"t": say,
		// known is the message of a name that comes from elsewhere, or the name.
		"known": func(kind, name any) string {
			return cmp.Or(messageOf(language, fmt.Sprint(kind, "_", name)), fmt.Sprint(name))
		},
		"switchTo": func(here string) template.URL { return switchURL(here, language) },
		"age":      func(at time.Time) string { return age(language, time.Since(at)) },
		"in":       func(at time.Time) string { return strings.TrimSpace(duration(language, time.Until(at))) },
		"clock":    func(at time.Time) string { return at.In(ledger.Zone()).Format("2006-01-02 15:04:05") },
		"machine":  func(at time.Time) string { return at.UTC().Format(time.RFC3339Nano) },
		"hourOf":   func(at time.Time) string { return at.In(ledger.Zone()).Format("15:04") },
		"yuan":     yuan,
		"path":     url.PathEscape,
		"shown":    shownRequest,
		"tone":     tone,
		"states":   jobs.States,
		"short":    func(id string) string { return id[:min(len(id), 8)] },
		"dim":      func(image jobs.Image) string { return strconv.Itoa(image.Width) + "×" + strconv.Itoa(image.Height) },
		// bar and flip draw percents into a chart ten units high, whose y grows downward.
		"bar":  func(parts ...int) float64 { return 10 - float64(min(sum(parts), 100))/10 },
		"flip": func(y float64) float64 { return 10 - y },
		"list": func(items ...any) []any { return items },
	}
}

// switchURL is a page in the other language.
func switchURL(here, language string) template.URL {
	other := chinese
	if language == chinese {
		other = english
	}
	u, err := url.Parse(here)
	if err != nil {
		u = &url.URL{Path: "/"}
	}
	query := u.Query()
	query.Set("lang", other)
	return template.URL((&url.URL{Path: u.Path, RawQuery: query.Encode()}).String()) //nolint:gosec // a path of this server with an encoded query
}

// age says how long ago something was.
func age(language string, since time.Duration) string {
	if since < 5*time.Second {
		return messageOf(language, "just_now")
	}
	return fmt.Sprintf(messageOf(language, "ago"), duration(language, since))
}

// duration rounds a duration to one unit.
func duration(language string, d time.Duration) string {
	d = max(d, 0)
	for _, unit := range []struct {
		key  string
		size time.Duration
	}{{"days", 24 * time.Hour}, {"hours", time.Hour}, {"minutes", time.Minute}} {
		if d >= 2*unit.size || d >= unit.size && unit.size == time.Minute {
			return fmt.Sprintf(messageOf(language, unit.key), int(d/unit.size))
		}
	}
	return fmt.Sprintf(messageOf(language, "seconds"), int(d/time.Second))
}

// tone is the color of a state.
func tone(state any) string {
	switch jobs.State(fmt.Sprint(state)) {
	case jobs.StateSucceeded:
		return "good"
	case jobs.StateFailed:
		return "bad"
	case jobs.StateHeld:
		return "warn"
	case jobs.StateSubmitting, jobs.StateGenerating, jobs.StateStoring:
		return "busy"
	default:
		return "calm"
	}
}

// shownRequest is a name and a value of a request for each field that a person would look for.
// References are shown without what may be secret in their URLs.
func shownRequest(req *jobs.Request) [][2]string {
	if req == nil {
		return nil
	}
	var list [][2]string
	add := func(name, value string) {
		if value != "" {
			list = append(list, [2]string{name, value})
		}
	}
	add("negative_prompt", req.NegativePrompt)
	add("style", req.Style)
	add("size", req.Size)
	add("n", strconv.Itoa(req.N))
	if req.Seed != nil {
		add("seed", strconv.FormatInt(*req.Seed, 10))
	}
	for _, name := range req.References() {
		add("ref_img", withoutQuery(name))
	}
	add("function", req.Function)
	return list
}

// withoutQuery returns a URL without user, query and fragment.
func withoutQuery(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

func sum(parts []int) (total int) {
	for _, part := range parts {
		total += part
	}
	return total
}

// yuan shows an amount with two decimals or more.
func yuan(micro int64) string {
	text := ledger.FormatYuan(micro)
	whole, decimals, _ := strings.Cut(text, ".")
	return "¥" + whole + "." + (decimals + "00")[:max(len(decimals), 2)]
}
