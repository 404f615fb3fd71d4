package gateway

import (
	"net/http"
	"slices"
	"strings"
)

// maxPreflightHeaderBytes limits the names that a preflight asks for. The value is our choice.
const maxPreflightHeaderBytes = 1 << 10

// cors lets the pages of the configured origins use what next serves. A preflight needs no
// token: browsers send none.
func (a *api) cors(next http.Handler) http.Handler {
	if len(a.cfg.CORSOrigins) == 0 {
		return next
	}
	exposed := strings.Join([]string{
		"Retry-After", "ETag", "Content-Range", "X-Danqing-Job", headerPrice, headerImages, headerPosition, headerStart, headerWarnings, headerIgnored, "X-Danqing-Simulated",
	}, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Add("Vary", "Origin")
		origin := r.Header.Get("Origin")
		if !slices.Contains(a.cfg.CORSOrigins, origin) {
			next.ServeHTTP(w, r)
			return
		}
		header.Set("Access-Control-Allow-Origin", origin)
		header.Set("Access-Control-Expose-Headers", exposed)
		if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
			next.ServeHTTP(w, r)
			return
		}
		header.Set("Access-Control-Allow-Methods", "GET, HEAD, POST")
		if names := r.Header.Get("Access-Control-Request-Headers"); len(names) <= maxPreflightHeaderBytes {
			header.Set("Access-Control-Allow-Headers", names) // the preflight's own
		}
		header.Set("Access-Control-Max-Age", "7200") // browsers keep it for as long at most
		w.WriteHeader(http.StatusNoContent)
	})
}

// trusting is [sameOrigin] with the exception of some origins.
func trusting(origins []string, next http.Handler) http.Handler {
	checked := sameOrigin(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if slices.Contains(origins, r.Header.Get("Origin")) {
			next.ServeHTTP(w, r)
			return
		}
		checked.ServeHTTP(w, r)
	})
}
