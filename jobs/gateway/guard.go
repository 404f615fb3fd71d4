package gateway

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
)

// Listen opens a TCP address, host:port. Port 0 picks a free one. A host that is not a
// loopback one (localhost, 127.0.0.0/8, [::1]) is refused unless there are tokens to
// tell who asks. It fails too if the port is taken. Whether the address is of this
// machine alone it tells beside the listener: only there may the web UI be served.
func Listen(ctx context.Context, address string, tokens bool) (listener net.Listener, local bool, err error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, false, fmt.Errorf("listen address %q: not host:port, as in 127.0.0.1:8765", address)
	}
	if local = loopback(host); !local && !tokens {
		return nil, false, fmt.Errorf("listen address %q: not on this machine's loopback, and there are no tokens to tell who may spend money", address)
	}
	listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	return listener, local, err
}

// loopback reports whether a host without port can only mean this machine.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

// guard lets through what this machine's own pages and programs ask for, and
// tells the browser to load nothing from elsewhere.
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

// localOnly refuses what was asked for under a name that is not this machine's own: a
// foreign one may have been pointed here.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host // without a port
		}
		for _, name := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Real-Ip"} {
			if r.Header.Get(name) != "" { // a proxy, which others reach
				host = ""
			}
		}
		if !loopback(host) {
			http.Error(w, "this is reached by a loopback name alone, as in http://127.0.0.1, and by no proxy: DANQING_SERVE_TOKENS are needed for that", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
