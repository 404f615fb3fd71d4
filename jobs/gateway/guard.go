package gateway

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Listen listens on a TCP address, host:port. Port 0 picks a free one. The listener has a
// quarter of the process's file descriptors; give the server [ConnContext] too. It fails if the
// host is not a loopback one (localhost, 127.0.0.0/8, [::1]) and there are no tokens, or
// if the port is in use. local reports whether the host is a loopback one: only then may
// the web UI be served without a login, and the API without tokens.
func Listen(ctx context.Context, address string, tokens bool) (listener net.Listener, local bool, err error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, false, fmt.Errorf("listen address %q: not host:port, as in 127.0.0.1:8765", address)
	}
	if local = loopback(host); !local && !tokens {
		return nil, false, fmt.Errorf("listen address %q: not a loopback address, and there are no tokens to control who may spend money", address)
	}
	listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, local, err
	}
	return &boundedListener{Listener: listener, limit: connLimit()}, local, nil
}

// loopback reports whether a host, without port, is a loopback name or address.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

// secureHeaders sets security headers, among them a Content-Security-Policy.
func secureHeaders(policy string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", policy)
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Referrer-Policy", "same-origin") // see forwarded
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Frame-Options", "DENY")
		next.ServeHTTP(w, r)
	})
}

// sameOrigin refuses requests of other pages that change something.
func sameOrigin(next http.Handler) http.Handler {
	return http.NewCrossOriginProtection().Handler(next)
}

// localOnly is [LocalOnly] for the API and the web UI.
func localOnly(next http.Handler) http.Handler {
	return LocalOnly("DANQING_SERVE_TOKENS for the API, and DANQING_OPERATOR_TOKENS for the web UI", next)
}

// LocalOnly refuses requests whose host is not a loopback name, as a protection against DNS
// rebinding, and requests through a proxy, which may be reachable by others. It says that they
// need what is named.
func LocalOnly(needed string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host // without a port
		}
		if !loopback(host) || forwarded(r) {
			http.Error(w, "only requests to a loopback address such as http://127.0.0.1 are accepted, without a proxy: anything else needs "+needed, http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// forwarded reports whether a request came through a proxy: the proxy says so, or a browser
// calls it same-origin while it is for another host.
func forwarded(r *http.Request) bool {
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Forwarded-") || slices.Contains([]string{"Forwarded", "Via", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip", "Cf-Connecting-Ip"}, name) {
			return true
		}
	}
	if r.Header.Get("Sec-Fetch-Site") != "same-origin" {
		return false
	}
	for _, name := range []string{"Origin", "Referer"} {
		if u, err := url.Parse(r.Header.Get(name)); err == nil && u.Host != "" && u.Host != r.Host {
			return true
		}
	}
	return false
}

// directOnly refuses HTTP/1.0, which nginx speaks by default when it forwards requests, with
// the host name that its configuration has, and which no browser speaks.
func directOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !r.ProtoAtLeast(1, 1) {
			http.Error(w, "the web UI is not served through a proxy, unless operators log in: set DANQING_OPERATOR_TOKENS", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// readOnly refuses requests that change something.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.Error(w, "the web UI is read-only: set DANQING_UI_WRITE=true to change that", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
