package simulator

import (
	"cmp"
	"net/http"
	"strconv"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// offersPage and maxOffersPage are the page sizes of the list of models (list-quotas and
	// list-models pages).
	offersPage, maxOffersPage = 20, 200
	// queueLimit is how many tasks of a model may wait. The real limit is in no document.
	queueLimit = 100
)

// offers serves the list of the region's models, with what the catalog says of their prices. The
// unit of an image's price is assumed.
func (s *Simulator) offers(r *http.Request, requestID string) (any, error) {
	var all []dashscope.OfferedModel
	for _, m := range s.regionModels() {
		price := func(kind string, micro int64) dashscope.OfferedPrice {
			return dashscope.OfferedPrice{Type: kind, Price: strconv.FormatFloat(float64(micro)/1e6, 'f', -1, 64), PriceUnit: "per image", PriceName: kind}
		}
		prices := []dashscope.OfferedPrice{price("image_number", m.microYuan)}
		if m.catalog != nil {
			prices[0] = price("image_number", m.catalog.Prices[m.region])
			if large, ok := m.catalog.LargePrices[m.region]; ok {
				prices = append(prices, price("image_number_2k", large))
			}
			if input, ok := m.catalog.InputPrices[m.region]; ok {
				prices = append(prices, price("input_image_number", input))
			}
		}
		offered := dashscope.OfferedModel{Model: m.name, Prices: []dashscope.PriceRange{{RangeName: "default", Prices: prices}}}
		if at := s.retiresAt(m.name); !at.IsZero() {
			offered.InferenceOfflineInfo = &dashscope.OfflineInfo{OfflineTime: at.In(beijing()).Format(time.DateTime)}
		}
		all = append(all, offered)
	}
	answer := dashscope.ModelsResponse{RequestID: requestID}
	var err error
	answer.Output.Total = len(all)
	answer.Output.Models, err = pageOf(r, all)
	return answer, err
}

// limits serves the account's limits.
func (s *Simulator) limits(r *http.Request, requestID string) (any, error) {
	number := func(n int) *float64 { f := float64(n); return &f }
	var all []dashscope.ModelQuota
	for _, m := range s.regionModels() {
		limit := dashscope.QuotaLimit{
			RequestLimit: number(cmp.Or(max(s.SubmitsPerSecond, 0), m.submits)), RequestLimitPeriod: number(1),
			AsyncUserQueueLimit: number(queueLimit), AsyncUserConcurrencyLimit: number(cmp.Or(max(s.Concurrency, 0), m.concurrency)),
		}
		if m.catalog != nil && m.catalog.SubmitsPerMinute > 0 {
			limit.RequestLimit, limit.RequestLimitPeriod = number(m.catalog.SubmitsPerMinute), number(60)
		}
		all = append(all, dashscope.ModelQuota{Model: m.name, ModelLimit: &limit})
	}
	answer := dashscope.LimitsResponse{RequestID: requestID}
	var err error
	answer.Output.Total = len(all)
	answer.Output.Quotas, err = pageOf(r, all)
	return answer, err
}

// pageOf returns the page of a list that a request asks for.
func pageOf[T any](r *http.Request, all []T) ([]T, error) {
	number := func(name string, standard int) (int, error) {
		text := r.URL.Query().Get(name)
		if text == "" {
			return standard, nil
		}
		n, err := strconv.ParseInt(text, 10, 16)
		if err != nil || n < 1 {
			return 0, &apiError{http.StatusBadRequest, "InvalidParameter", name + " is invalid, please check the request parameters."}
		}
		return int(n), nil
	}
	no, err := number("page_no", 1)
	if err != nil {
		return nil, err
	}
	size, err := number("page_size", offersPage)
	if err != nil {
		return nil, err
	}
	size = min(size, maxOffersPage)
	first := min((no-1)*size, len(all))
	return append([]T{}, all[first:min(first+size, len(all))]...), nil
}
