package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway/dashboard"
)

// Operator is the credential of a person or program that runs Danqing.
type Operator struct {
	// Name stands beside the operator's decisions; see [jobs.ValidAccount]. It must be
	// unique.
	Name   string
	Secret string // not empty
}

// localOperator is who acts where there is no login: somebody on this machine.
const localOperator = "local"

const (
	sessionCookie = "danqing_session"
	// sessionLifetime is a working day: after that the login page asks again.
	sessionLifetime = 12 * time.Hour
	// sessionPurpose separates a session's signature from any other use of a token.
	sessionPurpose = "danqing/session/1"
	// maxUIFormBytes limits the body of a form of the web UI.
	maxUIFormBytes = 64 << 10
)

// login lets operators in: people by a cookie that the login page gives for a token, programs
// by the token itself. Without tokens it lets everybody in who is on this machine.
//
// A session is a name, an expiry and their signature by a key that follows from the token. So
// it needs no store, is valid at every server with the same tokens, and ends with its token.
type login struct {
	operators []operatorKeys
	secure    bool // cookies are for TLS only, because a proxy ends it
	guesses   *guesses
	page      *dashboard.Dashboard
}

// operatorKeys is an operator's token as a hash, and the key of the sessions.
type operatorKeys struct {
	name    string
	hash    [sha256.Size]byte
	session []byte
}

func newLogin(operators []Operator, secure bool, page *dashboard.Dashboard) (*login, error) {
	tries, err := lru.New[string, guess](guessersKept)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	l := &login{secure: secure, guesses: &guesses{by: tries}, page: page}
	names, secrets := map[string]bool{}, map[string]bool{}
	for i, o := range operators {
		if err := jobs.ValidAccount(o.Name); err != nil {
			return nil, fmt.Errorf("gateway: operator %d: name: %w", i+1, err)
		}
		if o.Secret == "" || names[o.Name] || secrets[o.Secret] {
			return nil, fmt.Errorf("gateway: operator %s: the token is empty, or it or the name is used twice", o.Name)
		}
		names[o.Name], secrets[o.Secret] = true, true
		l.operators = append(l.operators, operatorKeys{o.Name, sha256.Sum256([]byte(o.Secret)), sign([]byte(o.Secret), sessionPurpose)})
	}
	return l, nil
}

func sign(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

type operatorKey struct{}

// operatorOf returns the name of the operator who sent a request, for decisions.
func operatorOf(r *http.Request) string {
	name, _ := r.Context().Value(operatorKey{}).(string)
	return name
}

// protect lets operators in, and sends everybody else to the login page. Without tokens it
// refuses what does not come from this machine.
func (l *login) protect(next http.Handler) http.Handler {
	as := func(name string, w http.ResponseWriter, r *http.Request) {
		defer useConn(r)()
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), operatorKey{}, name)))
	}
	if len(l.operators) == 0 {
		return localOnly(directOnly(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { as(localOperator, w, r) })))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, err := l.operator(r)
		var limited *guessLimitError
		switch {
		case err == nil:
			as(name, w, r)
		case errors.As(err, &limited):
			w.Header().Set("Retry-After", strconv.Itoa(limited.seconds))
			http.Error(w, err.Error(), http.StatusTooManyRequests)
		case r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html"):
			http.Redirect(w, r, dashboard.LoginPath(r.URL), http.StatusSeeOther) //nolint:gosec // /login with a query
		default:
			w.Header().Set("WWW-Authenticate", `Bearer realm="danqing"`)
			http.Error(w, err.Error(), http.StatusUnauthorized)
		}
	})
}

var errNoLogin = errors.New("log in at /login, or send Authorization: Bearer and a token of DANQING_OPERATOR_TOKENS")

// operator returns who sent a request, by its cookie or its token.
func (l *login) operator(r *http.Request) (string, error) {
	if name, ok := l.session(r); ok {
		return name, nil
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", errNoLogin
	}
	return l.check(r, strings.TrimSpace(secret))
}

// check returns the operator with a token. It takes the same time for every token, and counts
// wrong ones.
func (l *login) check(r *http.Request, secret string) (string, error) {
	hash := sha256.Sum256([]byte(secret))
	found := ""
	err := l.guesses.try(clientNetwork(r), func() bool {
		for _, o := range l.operators {
			if subtle.ConstantTimeCompare(hash[:], o.hash[:]) == 1 {
				found = o.name
			}
		}
		return found != ""
	})
	return found, err
}

// session returns the operator of a request's cookie.
func (l *login) session(r *http.Request) (name string, ok bool) {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return "", false
	}
	expiry, rest, _ := strings.Cut(cookie.Value, ".")
	signature, name, _ := strings.Cut(rest, ".")
	given, err := base64.RawURLEncoding.DecodeString(signature)
	seconds, numberErr := strconv.ParseInt(expiry, 10, 64)
	if err != nil || numberErr != nil || !time.Now().Before(time.Unix(seconds, 0)) {
		return "", false
	}
	for _, o := range l.operators {
		if o.name == name {
			return name, hmac.Equal(given, sign(o.session, expiry+"."+name))
		}
	}
	return "", false
}

// setSession sets the cookie of an operator's session, or removes it if name is "".
func (l *login) setSession(w http.ResponseWriter, r *http.Request, name string) {
	cookie := &http.Cookie{ //nolint:gosec // Secure where the client uses TLS
		Name: sessionCookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: l.secure || r.TLS != nil, MaxAge: -1,
	}
	for _, o := range l.operators {
		if o.name == name {
			expiry := strconv.FormatInt(time.Now().Add(sessionLifetime).Unix(), 10)
			cookie.Value = expiry + "." + base64.RawURLEncoding.EncodeToString(sign(o.session, expiry+"."+name)) + "." + name
			cookie.MaxAge = int(sessionLifetime / time.Second)
		}
	}
	http.SetCookie(w, cookie)
}

// handle adds the login page. Without tokens there is nothing to log in to.
func (l *login) handle(routes *http.ServeMux) {
	routes.HandleFunc("GET "+dashboard.LoginPage, func(w http.ResponseWriter, r *http.Request) {
		if _, ok := l.session(r); ok || len(l.operators) == 0 {
			http.Redirect(w, r, dashboard.Next(r), http.StatusSeeOther)
			return
		}
		l.page.WriteLogin(w, r, http.StatusOK, 0)
	})
	routes.HandleFunc("POST "+dashboard.LoginPage, func(w http.ResponseWriter, r *http.Request) {
		name, err := l.check(r, strings.TrimSpace(r.PostFormValue("token")))
		var limited *guessLimitError
		switch {
		case err == nil:
			l.setSession(w, r, name)
			http.Redirect(w, r, dashboard.Next(r), http.StatusSeeOther)
		case errors.As(err, &limited):
			w.Header().Set("Retry-After", strconv.Itoa(limited.seconds))
			l.page.WriteLogin(w, r, http.StatusTooManyRequests, limited.seconds)
		default:
			l.page.WriteLogin(w, r, http.StatusUnauthorized, 0)
		}
	})
	routes.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		l.setSession(w, r, "")
		http.Redirect(w, r, dashboard.LoginPage, http.StatusSeeOther)
	})
}

const (
	// freeGuesses is how many wrong tokens a network may send before it must wait: a person
	// mistypes. After each further one it waits twice as long, up to maxGuessWait.
	freeGuesses  = 5
	maxGuessWait = time.Minute
	// guessLifetime is how long wrong tokens count.
	guessLifetime = 15 * time.Minute
	// guessersKept bounds the memory: networks are forgotten when so many others came after.
	guessersKept = 4096
)

// guesses limits how many wrong tokens a network can try.
type guesses struct {
	mu sync.Mutex
	by *lru.Cache[string, guess]
}

// guess is what a network has tried.
type guess struct {
	wrong int
	until time.Time // when it may try again
}

// guessLimitError means that a network must wait before it may send another token.
type guessLimitError struct{ seconds int }

func (e *guessLimitError) Error() string {
	return fmt.Sprintf("too many wrong tokens: try again in %d s", e.seconds)
}

// try calls match unless the network must wait, and counts it if it does not match.
func (g *guesses) try(network string, match func() bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	past, _ := g.by.Get(network)
	switch wait := past.until.Sub(now); {
	case wait > 0:
		return &guessLimitError{int((wait + time.Second - 1) / time.Second)}
	case -wait > guessLifetime:
		past = guess{}
	}
	if match() {
		g.by.Remove(network)
		return nil
	}
	past.wrong++
	past.until = now
	if past.wrong >= freeGuesses {
		past.until = now.Add(min(time.Second<<min(past.wrong-freeGuesses, 10), maxGuessWait))
	}
	g.by.Add(network, past)
	return errNoLogin
}

// clientNetwork returns the address that sent a request, of IPv6 the network of a customer.
func clientNetwork(r *http.Request) string {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	address, err := netip.ParseAddr(host)
	if err != nil || address.Unmap().Is4() {
		return host
	}
	network, _ := address.Prefix(64)
	return network.String()
}
