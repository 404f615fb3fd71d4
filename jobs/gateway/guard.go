package gateway

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
)

// Listen listens on a TCP address, host:port. Port 0 picks a free one. The listener has a
// quarter of the process's file descriptors; give the server [ConnContext] too. It fails if the
// host is not a loopback one (localhost, 127.0.0.0/8, [::1]) and there are no tokens, or
// if the port is in use. local reports whether the host is a loopback one: only then may
// the web UI be served.
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

// guard refuses cross-origin requests and requests under other host names, and sets
// security headers, among them a Content-Security-Policy.
func guard(policy string, next http.Handler) http.Handler {
	next = localOnly(http.NewCrossOriginProtection().Handler(next))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", policy)
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Frame-Options", "DENY")
		next.ServeHTTP(w, r)
	})
}

// localOnly refuses requests whose host is not a loopback name, as a protection against
// DNS rebinding, and requests through a proxy.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host // without a port
		}
		for _, name := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Real-Ip"} {
			if r.Header.Get(name) != "" { // from a proxy, which may be reachable by others
				host = ""
			}
		}
		if !loopback(host) {
			http.Error(w, "only requests to a loopback address such as http://127.0.0.1 are accepted, without a proxy: anything else needs DANQING_SERVE_TOKENS", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
