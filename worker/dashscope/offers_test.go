package dashscope

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// offersOf reads the lists of a service.
func offersOf(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	c, err := New(Config{BaseURL: testBase, APIKey: testKey, DialContext: serve(t, h).DialContext, QueriesPerSecond: 1e6})
	require.NoError(t, err)
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// What the list says of a model is read, whatever else is in it; what makes no sense is left out.
func TestOffers(t *testing.T) {
	t.Parallel()
	const models = `{"model":"a","prices":[{"range_name":"x","prices":[
	{"type":"image_number","price":"0.16","price_unit":"per image"},{"type":"t","price":0.2},{"type":"t","price":"NaN"},{"type":"t","price":-1},
	{"type":"t","price":"1e9"},{"type":"t","price":{}},{"type":"t","price":"free"}]}],"inference_offline_info":{"offline_time":"2027-01-31 00:00:00"}},
	{"model":"b","prices":"none","inference_offline_info":null},{"model":"c","inference_offline_info":{"offline_time":"2027-01-31"}},
	{"model":"d","inference_offline_info":{"offline_time":"soon"}},{"model":7},{},null,"text",{"model":"e","prices":[null,{"prices":null}],"inference_offline_info":[1]}`
	c := offersOf(t, func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, http.MethodGet, r.Method)
		assert.Equal(t, "/api/v1/models", r.URL.Path)
		_, _ = fmt.Fprintf(w, `{"output":{"total":9,"models":[%s]}}`, models)
	})
	offers, err := c.Offers(t.Context())
	require.NoError(t, err)
	at := time.Date(2027, 1, 31, 0, 0, 0, 0, time.FixedZone("UTC+8", 8*60*60))
	require.Len(t, offers, 5)
	assert.Equal(t, []OfferPrice{{160_000, "image_number per image"}, {200_000, "t"}}, offers["a"].PricesMicroYuan)
	assert.WithinDuration(t, at, offers["a"].RetiresAt, 0)
	assert.WithinDuration(t, at, offers["c"].RetiresAt, 0)
	for _, name := range []string{"b", "d", "e"} {
		assert.Equal(t, Offer{Model: name}, offers[name])
	}
}

// A list is read to its end, and no further than some pages; one that repeats itself ends too.
func TestOffersAreBounded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		page  func(no string) string
		total string
		calls int
		want  string
	}{
		"one page":          {func(string) string { return `{"model":"a"}` }, `"total":1,`, 1, ""},
		"two pages":         {func(no string) string { return `{"model":"a` + no + `"}` }, `"total":2,`, 2, ""},
		"empty":             {func(string) string { return "" }, `"total":5,`, 1, ""},
		"no total":          {func(string) string { return `{"model":"a"}` }, "", 1, ""},
		"endless":           {func(no string) string { return `{"model":"a` + no + `"}` }, `"total":999999999,`, offersPages, "more than 20 pages"},
		"the same page":     {func(string) string { return `{"model":"a"}` }, `"total":9,`, 2, "page 2 has nothing new"},
		"nonsense in total": {func(no string) string { return `{"model":"a` + no + `"}` }, `"total":"many",`, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			c := offersOf(t, func(w http.ResponseWriter, r *http.Request) {
				calls++
				_, _ = fmt.Fprintf(w, `{"output":{%s"models":[%s]}}`, test.total, test.page(r.URL.Query().Get("page_no")))
			})
			_, err := c.Offers(t.Context())
			assert.Equal(t, test.calls, calls)
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrPartial)
			assert.ErrorContains(t, err, test.want)
		})
	}
}

// A list in another shape, or too long, is an error; so is a key that may not ask.
func TestOffersRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status     int
		body, want string
	}{
		"may not":       {403, `{"code":"AccessDenied","message":"no"}`, "HTTP 403: AccessDenied: no"},
		"not there":     {404, `{"code":"NotFound","message":"no"}`, "HTTP 404"},
		"page":          {200, "<html>", "answer has no list output.models"},
		"another shape": {200, `{"output":[1]}`, "answer has no list output.models"},
		"no models":     {200, `{"output":{"total":1}}`, "answer has no list output.models"},
		"null":          {200, `{"output":{"models":null}}`, "answer has no list output.models"},
		"too long":      {200, `{"output":{"models":["` + strings.Repeat("x", maxBodyBytes) + `"]}}`, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := offersOf(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(test.status)
				_, _ = fmt.Fprint(w, test.body)
			})
			_, err := c.Offers(t.Context())
			require.ErrorContains(t, err, test.want)
			assert.NotErrorIs(t, err, ErrPartial)
			assert.NotContains(t, err.Error(), testKey)
		})
	}
}

// The limits are those of /models/limits, else of /quotas; the workspace's count where they are
// tighter, and nonsense is no limit.
func TestLimits(t *testing.T) {
	t.Parallel()
	const body = `{"output":{"total":4,"quotas":[
	{"model":"a","model_limit":{"request_limit":2,"request_limit_period":1,"async_user_queue_limit":100,"async_user_concurrency_limit":3},"workspace_limit":null},
	{"model":"b","model_limit":{"request_limit":300,"request_limit_period":60,"async_user_concurrency_limit":5},"workspace_limit":{"request_limit":1,"request_limit_period":1,"async_user_concurrency_limit":2,"async_user_queue_limit":7}},
	{"model":"c","model_limit":{"request_limit":-3,"request_limit_period":0,"async_user_queue_limit":1e18,"async_user_concurrency_limit":0}},
	{"model":"d","model_limit":{"request_limit":"many"}}]}}`
	for name, elsewhere := range map[string]bool{"limits": false, "quotas": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := offersOf(t, func(w http.ResponseWriter, r *http.Request) {
				if elsewhere && r.URL.Path == "/api/v1/models/limits" {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				assert.Equal(t, map[bool]string{false: "/api/v1/models/limits", true: "/api/v1/quotas"}[elsewhere], r.URL.Path)
				_, _ = fmt.Fprint(w, body)
			})
			limits, err := c.Limits(t.Context())
			require.NoError(t, err)
			assert.Equal(t, map[string]Limit{
				"a": {Model: "a", Concurrency: 3, Queue: 100, Requests: 2, Period: time.Second},
				"b": {Model: "b", Concurrency: 2, Queue: 7, Requests: 1, Period: time.Second},
				"c": {Model: "c"},
			}, limits)
			assert.Zero(t, limits["c"].PerSecond())
			assert.InDelta(t, 2.0, limits["a"].PerSecond(), 0)
		})
	}
}
