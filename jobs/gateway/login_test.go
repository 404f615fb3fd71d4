package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/gateway"
)

const (
	annToken = "ann-0123456789abcdef"
	boToken  = "bo-0123456789abcdefg"
)

// site is a web UI with a login.
type site struct{ handler http.Handler }

func newSite(t *testing.T, rdb redis.UniversalClient, change func(*gateway.Config)) site {
	t.Helper()
	cfg := gateway.Config{
		UI: true, Redis: rdb,
		Operators: []gateway.Operator{{Name: "ann", Secret: annToken}, {Name: "bo", Secret: boToken}},
	}
	if change != nil {
		change(&cfg)
	}
	g, err := gateway.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return site{g}
}

// call sends a request to https://danqing.example with pairs of header names and values.
func (s site) call(t *testing.T, method, path string, form url.Values, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "https://danqing.example"+path, strings.NewReader(form.Encode()))
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

// logIn returns the cookie of a session.
func (s site) logIn(t *testing.T, token string) *http.Cookie {
	t.Helper()
	w := s.call(t, http.MethodPost, "/login", url.Values{"token": {token}})
	require.Equal(t, http.StatusSeeOther, w.Code)
	cookies := w.Result().Cookies()
	require.Len(t, cookies, 1)
	return cookies[0]
}

// protectedPaths are those that operators alone may see.
func protectedPaths() []string {
	return []string{"/", "/jobs", "/jobs/cat", "/jobs/cat/images/1", "/jobs/cat/held/a/1", "/jobs/cat/decide?action=retry", "/ui/", "/ui/api/queues", "/ui/static/js/main.5adda2da.chunk.js"}
}

// Nothing of the web UI is shown, or changed, without a token; every way to send one is accepted.
func TestLogin(t *testing.T) {
	t.Parallel()
	rdb := embeddedRedis(t)
	s := newSite(t, rdb, nil)
	forged := *s.logIn(t, annToken)
	for _, bad := range [][]string{
		nil, {"Authorization", "Bearer wrong-0123456789abcdef"}, {"Authorization", "Basic " + annToken}, {"Authorization", "Bearer "},
		{"Cookie", "danqing_session="}, {"Cookie", "danqing_session=9999999999..ann"}, {"Cookie", "danqing_session=9999999999.AAAA.ann"},
		{"Cookie", "danqing_session=" + strings.TrimSuffix(forged.Value, "ann") + "bo"}, {"Cookie", "danqing_session=1" + forged.Value},
	} {
		for _, path := range append(protectedPaths(), "/events") {
			w := newSite(t, rdb, nil).call(t, http.MethodGet, path, nil, bad...)
			assert.Equal(t, http.StatusUnauthorized, w.Code, "%s %s", path, bad)
			assert.Equal(t, `Bearer realm="danqing"`, w.Header().Get("WWW-Authenticate"))
		}
	}
	for _, path := range []string{"/pauses", "/jobs/cat/decide", "/ui/api/queues/mail:pause"} {
		assert.Equal(t, http.StatusUnauthorized, s.call(t, http.MethodPost, path, url.Values{}).Code, path)
	}
	for _, token := range []string{annToken, boToken} {
		cookie := s.logIn(t, token)
		assert.True(t, cookie.HttpOnly)
		assert.True(t, cookie.Secure)
		assert.Equal(t, http.SameSiteStrictMode, cookie.SameSite)
		assert.NotContains(t, cookie.Value, token)
		for _, good := range [][]string{{"Cookie", cookie.Name + "=" + cookie.Value}, {"Authorization", "bearer " + token}} {
			for _, path := range protectedPaths() {
				assert.NotContains(t, []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusSeeOther}, s.call(t, http.MethodGet, path, nil, good...).Code, path)
			}
		}
	}
	// Another server with the same tokens knows the session, one with another token does not.
	session := "danqing_session=" + s.logIn(t, annToken).Value
	assert.Equal(t, http.StatusOK, newSite(t, rdb, nil).call(t, http.MethodGet, "/ui/", nil, "Cookie", session).Code)
	other := newSite(t, rdb, func(cfg *gateway.Config) { cfg.Operators[0].Secret = "ann-fedcba9876543210" })
	assert.Equal(t, http.StatusUnauthorized, other.call(t, http.MethodGet, "/ui/", nil, "Cookie", session).Code)
}

// The login page leads back to where one came from, and never to another site.
func TestLoginLeadsBack(t *testing.T) {
	t.Parallel()
	rdb := embeddedRedis(t)
	s := newSite(t, rdb, nil)
	w := s.call(t, http.MethodGet, "/jobs?q=%E7%8C%AB", nil, "Accept", "text/html,*/*")
	assert.Equal(t, http.StatusSeeOther, w.Code)
	assert.Equal(t, "/login?next=%2Fjobs%3Fq%3D%25E7%258C%25AB", w.Header().Get("Location"))
	w = s.call(t, http.MethodGet, w.Header().Get("Location"), nil)
	assert.Equal(t, http.StatusOK, w.Code)
	assert.Contains(t, w.Body.String(), `name="next" value="/jobs?q=%E7%8C%AB"`)
	for next, want := range map[string]string{
		"/jobs?q=1": "/jobs?q=1", "": "/", "//evil.example": "/", "https://evil.example/": "/", `/\evil.example`: "/", "javascript:alert(1)": "/", "/\t/evil.example": "/", "jobs": "/",
	} {
		w := s.call(t, http.MethodPost, "/login", url.Values{"token": {annToken}, "next": {next}})
		assert.Equal(t, want, w.Header().Get("Location"), next)
	}
	w = s.call(t, http.MethodPost, "/login", url.Values{"token": {"wrong-0123456789"}, "next": {"/jobs"}}, "Accept-Language", "zh-CN")
	assert.Equal(t, http.StatusUnauthorized, w.Code)
	assert.Contains(t, w.Body.String(), "这不是操作员的令牌")
	assert.NotContains(t, w.Body.String(), "wrong-0123456789")
	assert.Empty(t, w.Header().Get("Set-Cookie"))
	// The language can be chosen before.
	w = s.call(t, http.MethodGet, "/login?next=%2Fjobs&lang=zh", nil)
	assert.Equal(t, "/login?next=%2Fjobs", w.Header().Get("Location"))
	// Whoever is logged in already goes on at once.
	w = s.call(t, http.MethodGet, "/login?next=/jobs", nil, "Cookie", "danqing_session="+s.logIn(t, annToken).Value)
	assert.Equal(t, "/jobs", w.Header().Get("Location"))
	assert.Equal(t, http.StatusOK, s.call(t, http.MethodGet, "/assets/dashboard.css", nil).Code)
}

// A session ends after twelve hours, or when its operator logs out.
func TestSessionEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // nothing is read
		defer rdb.Close()                                           //nolint:errcheck // the test is over
		s := newSite(t, rdb, nil)
		cookie := s.logIn(t, annToken)
		assert.Equal(t, 12*60*60, cookie.MaxAge)
		status := func() int {
			return s.call(t, http.MethodGet, "/ui/", nil, "Cookie", cookie.Name+"="+cookie.Value).Code
		}
		<-time.After(12*time.Hour - 2*time.Second)
		assert.Equal(t, http.StatusOK, status())
		<-time.After(3 * time.Second)
		assert.Equal(t, http.StatusUnauthorized, status())
		assert.Contains(t, s.call(t, http.MethodPost, "/logout", url.Values{}).Header().Get("Set-Cookie"), "danqing_session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Strict")
	})
}

// After five wrong tokens a network must wait, twice as long each time; others need not, nor do
// those who are logged in.
func TestGuessesAreLimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // nothing is read
		defer rdb.Close()                                           //nolint:errcheck // the test is over
		s := newSite(t, rdb, nil)
		session := "danqing_session=" + s.logIn(t, annToken).Value
		from := func(address, token string, headers ...string) int {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://danqing.example/ui/", nil)
			r.RemoteAddr = address
			r.Header.Set("Authorization", "Bearer "+token)
			for i := 0; i < len(headers); i += 2 {
				r.Header.Set(headers[i], headers[i+1])
			}
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			assert.Equal(t, w.Code == http.StatusTooManyRequests, w.Header().Get("Retry-After") != "")
			return w.Code
		}
		for range 5 {
			assert.Equal(t, http.StatusUnauthorized, from("[2001:db8::1]:1000", "wrong"))
		}
		assert.Equal(t, http.StatusTooManyRequests, from("[2001:db8::2]:2000", annToken), "the same network, also with the right token")
		assert.Equal(t, http.StatusOK, from("[2001:db8:0:1::1]:1000", annToken))
		assert.Equal(t, http.StatusOK, from("[2001:db8::2]:2000", "wrong", "Cookie", session))
		<-time.After(time.Second)
		assert.Equal(t, http.StatusUnauthorized, from("[2001:db8::1]:1000", "wrong"))
		<-time.After(time.Second)
		assert.Equal(t, http.StatusTooManyRequests, from("[2001:db8::1]:1000", annToken))
		<-time.After(time.Second)
		assert.Equal(t, http.StatusOK, from("[2001:db8::1]:1000", annToken))
		for range 9 { // nothing is remembered of the past
			if from("192.0.2.1:1", "wrong") == http.StatusTooManyRequests {
				<-time.After(time.Minute)
				from("192.0.2.1:1", "wrong")
			}
		}
		<-time.After(20 * time.Minute)
		for range 5 {
			assert.Equal(t, http.StatusUnauthorized, from("192.0.2.1:1", "wrong"))
		}
		r := s.call(t, http.MethodPost, "/login", url.Values{"token": {annToken}}) // from httptest's 192.0.2.1
		assert.Equal(t, http.StatusTooManyRequests, r.Code)
		assert.Contains(t, r.Body.String(), "Try again in 1 s")
	})
}

// Another site's forms are refused, with the session's cookie too, and so is every change while
// the web UI is read-only.
func TestUIRefusesChanges(t *testing.T) {
	t.Parallel()
	for _, isReadOnly := range []bool{false, true} {
		s := newSite(t, embeddedRedis(t), func(cfg *gateway.Config) { cfg.UIReadOnly = isReadOnly })
		session := "danqing_session=" + s.logIn(t, annToken).Value
		form := url.Values{"model": {"wanx-v1"}, "action": {"pause"}}
		for _, path := range []string{"/pauses", "/jobs/cat/decide", "/ui/api/queues/mail:pause", "/login", "/logout"} {
			for _, foreign := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"}} {
				assert.Equal(t, http.StatusForbidden, s.call(t, http.MethodPost, path, form, append(foreign, "Cookie", session)...).Code, "%s %s", path, foreign)
			}
		}
		want := map[bool]int{false: http.StatusSeeOther, true: http.StatusForbidden}[isReadOnly]
		assert.Equal(t, want, s.call(t, http.MethodPost, "/pauses", form, "Cookie", session, "Origin", "https://danqing.example").Code)
		assert.Equal(t, http.StatusOK, s.call(t, http.MethodGet, "/", nil, "Cookie", session).Code)
	}
}

func TestOperatorsAreValidated(t *testing.T) {
	t.Parallel()
	for _, operators := range [][]gateway.Operator{{{Name: "a b", Secret: "x"}}, {{Name: "a"}}, {{Name: "a", Secret: "x"}, {Name: "a", Secret: "y"}}, {{Name: "a", Secret: "x"}, {Name: "b", Secret: "x"}}} {
		_, err := gateway.New(gateway.Config{UI: true, Redis: embeddedRedis(t), Operators: operators})
		assert.ErrorContains(t, err, "operator")
	}
}
