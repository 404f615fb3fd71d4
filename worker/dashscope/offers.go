package dashscope

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// offersPage is how many models of a list are asked for at once: a page of the largest size,
	// 200, may be longer than an answer that is read.
	offersPage = 100
	// offersPages is how many pages are read: the list had 518 models in September 2026.
	offersPages = 20
	// maxPrice is above every price, in yuan: what is above it is nonsense.
	maxPrice = 1000
)

// ErrPartial means that a list has more pages than are read, or repeats itself.
var ErrPartial = errors.New("the list does not end")

// Offer is what the service says of a model. What it does not say, or what makes no sense, is zero.
type Offer struct {
	// Model is spelled as in the client's region.
	Model string
	// PricesMicroYuan are its prices in millionths of the unit of currency, in the list's order.
	PricesMicroYuan []OfferPrice
	// RetiresAt is when it is, or was, retired.
	RetiresAt time.Time
}

// OfferPrice is one price of a model.
type OfferPrice struct {
	// Micro is in millionths. Unit is what the service says of it: type, unit and name.
	Micro int64
	Unit  string
}

// Limit is the limits of a model: the tighter of those of the account and of the workspace. 0
// means none that the service tells.
type Limit struct {
	Model string
	// Concurrency is how many tasks run at once, Queue how many may wait.
	Concurrency, Queue int
	// Requests is how many creates are accepted in Period.
	Requests int
	Period   time.Duration
}

// PerSecond is how many creates are accepted in a second, 0 if that is not told.
func (l Limit) PerSecond() float64 {
	if l.Requests == 0 || l.Period <= 0 {
		return 0
	}
	return float64(l.Requests) / l.Period.Seconds()
}

// Offers lists the models that the service offers to the account, by name. It costs nothing. It
// fails with an [*Error], which wraps [ErrPartial] if the list did not end: what was read is
// returned too. Models that cannot be read are left out.
func (c *Client) Offers(ctx context.Context) (map[string]Offer, error) {
	offers := map[string]Offer{}
	err := c.pages(ctx, opModels, PathModels, "models", func(raw json.RawMessage) string {
		var m struct {
			OfferedModel
			Prices               json.RawMessage `json:"prices"`
			InferenceOfflineInfo json.RawMessage `json:"inference_offline_info"`
		}
		if json.Unmarshal(raw, &m) != nil || m.Model == "" {
			return ""
		}
		offers[m.Model] = Offer{Model: m.Model, PricesMicroYuan: c.prices(m.Prices), RetiresAt: offlineAt(m.InferenceOfflineInfo)}
		return m.Model
	})
	return offers, err
}

// Limits returns the limits of the account's models, by name. It fails as [Client.Offers] does.
func (c *Client) Limits(ctx context.Context) (map[string]Limit, error) {
	limits := map[string]Limit{}
	read := func(raw json.RawMessage) string {
		var q ModelQuota
		if json.Unmarshal(raw, &q) != nil || q.Model == "" {
			return ""
		}
		limits[q.Model] = tighter(limitOf(q.Model, q.ModelLimit), limitOf(q.Model, q.WorkspaceLimit))
		return q.Model
	}
	err := c.pages(ctx, opLimits, PathLimits, "quotas", read)
	if err == nil || errors.Is(err, ErrPartial) {
		return limits, err
	}
	return limits, c.pages(ctx, opLimits, PathQuotas, "quotas", read)
}

// pages reads a list page by page, and calls read with each of its entries, which returns its name,
// "" if it is unreadable.
func (c *Client) pages(ctx context.Context, op, path, field string, read func(json.RawMessage) string) error {
	seen, entries := map[string]bool{}, 0
	for page := 1; page <= offersPages; page++ {
		a, err := c.ask(ctx, op, http.MethodGet, path, url.Values{"page_no": {strconv.Itoa(page)}, "page_size": {strconv.Itoa(offersPage)}})
		if err != nil {
			return err
		}
		var body struct {
			Output map[string]json.RawMessage `json:"output"`
		}
		var list []json.RawMessage
		if json.Unmarshal(a.body, &body) != nil || json.Unmarshal(body.Output[field], &list) != nil || list == nil {
			return &Error{Op: op, Kind: KindTemporary, Status: a.status, Err: fmt.Errorf("answer has no list output.%s", field)}
		}
		fresh := false
		for _, raw := range list {
			if name := read(raw); name != "" && !seen[name] {
				seen[name], fresh = true, true
			}
		}
		entries += len(list)
		var total int
		known := json.Unmarshal(body.Output["total"], &total) == nil && total >= 0
		switch {
		case len(list) == 0, known && entries >= total, !known && len(list) < offersPage:
			return nil
		case !fresh:
			return &Error{Op: op, Kind: KindTemporary, Status: a.status, Err: fmt.Errorf("page %d has nothing new: %w", page, ErrPartial)}
		}
	}
	return &Error{Op: op, Kind: KindTemporary, Err: fmt.Errorf("more than %d pages: %w", offersPages, ErrPartial)}
}

// prices reads the prices of a model.
func (c *Client) prices(raw json.RawMessage) []OfferPrice {
	var ranges []struct {
		Prices []struct {
			Type      string          `json:"type"`
			Price     json.RawMessage `json:"price"`
			PriceUnit string          `json:"price_unit"`
			PriceName string          `json:"price_name"`
		} `json:"prices"`
	}
	if json.Unmarshal(raw, &ranges) != nil {
		return nil
	}
	var prices []OfferPrice
	for _, r := range ranges {
		for _, p := range r.Prices {
			yuan, err := strconv.ParseFloat(strings.Trim(string(p.Price), `" `), 64)
			if err != nil || !(yuan > 0 && yuan <= maxPrice) {
				continue
			}
			unit := strings.Join(strings.Fields(p.Type+" "+p.PriceUnit+" "+p.PriceName), " ")
			prices = append(prices, OfferPrice{Micro: int64(math.Round(yuan * 1e6)), Unit: cleanTo(c.scrub(unit), 60)})
		}
	}
	return prices
}

// offlineAt reads when a model is retired: the time, or an object with it; reports disagree.
func offlineAt(raw json.RawMessage) time.Time {
	var info OfflineInfo
	if json.Unmarshal(raw, &info) != nil {
		return time.Time{}
	}
	for _, layout := range []string{time.DateTime, time.DateOnly} {
		if at, err := time.ParseInLocation(layout, info.OfflineTime, time.FixedZone("UTC+8", 8*60*60)); err == nil {
			return at
		}
	}
	at, err := time.Parse(time.RFC3339, info.OfflineTime)
	if err != nil {
		return time.Time{}
	}
	return at
}

// limitOf reads one set of limits.
func limitOf(model string, q *QuotaLimit) Limit {
	l := Limit{Model: model}
	if q == nil {
		return l
	}
	l.Concurrency, l.Queue = wholeNumber(q.AsyncUserConcurrencyLimit), wholeNumber(q.AsyncUserQueueLimit)
	if n, period := wholeNumber(q.RequestLimit), wholeNumber(q.RequestLimitPeriod); n > 0 && period > 0 {
		l.Requests, l.Period = n, time.Duration(period)*time.Second
	}
	return l
}

// wholeNumber returns a limit, 0 if there is none or it makes no sense.
func wholeNumber(f *float64) int {
	if f == nil || !(*f >= 1 && *f <= 1e6) {
		return 0
	}
	return int(*f)
}

// tighter returns the tighter of each of two limits.
func tighter(a, b Limit) Limit {
	least := func(x, y int) int {
		if x == 0 || y != 0 && y < x {
			return y
		}
		return x
	}
	a.Concurrency, a.Queue = least(a.Concurrency, b.Concurrency), least(a.Queue, b.Queue)
	if rate := b.PerSecond(); rate > 0 && (a.PerSecond() == 0 || rate < a.PerSecond()) {
		a.Requests, a.Period = b.Requests, b.Period
	}
	return a
}
