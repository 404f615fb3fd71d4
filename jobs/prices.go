package jobs

import "github.com/danqing-queue/danqing/jobs/ledger"

// Purchase is what a task is charged for.
type Purchase struct {
	// Images are those that were created. LargeImages are those of them that have more pixels
	// than [Model.LargePixels].
	Images, LargeImages int
	// Inputs are the reference images that are charged.
	Inputs int
}

// Most is the most that a create of some images of a request can be charged for. r is nil if the
// request is not known.
//
// An edited image may have another size than the one that was asked for, and whether reference
// images are charged for each image or once is not documented: the dearer is assumed.
func (m Model) Most(r *Request, images int) Purchase {
	p := Purchase{Images: images, Inputs: m.Inputs.Max * images}
	if r != nil {
		p.Inputs = len(r.RefImages) * images
	}
	if m.InputPrices == nil {
		p.Inputs = 0
	}
	if m.LargePixels > 0 {
		p.LargeImages = images
		if r != nil && len(r.RefImages) == 0 {
			if w, h, ok := parseSize(r.Size); ok && w*h <= m.LargePixels {
				p.LargeImages = 0
			}
		}
	}
	return p
}

// CostOf is the price of a purchase in a region in micro-yuan (1 yuan is 1,000,000), without free
// quotas. contract has prices of a contract, micro-yuan for an image by the model's name; a large
// image costs as much more as in the catalog. sold is false, and the price 0, if the region does not
// have the model.
func (m Model) CostOf(contract map[string]int64, region string, p Purchase) (microYuan int64, sold bool) {
	price, sold := m.Prices[region]
	if !sold {
		return 0, false
	}
	large := price
	if dearer, ok := m.LargePrices[region]; ok {
		large = dearer
	}
	if agreed, ok := contract[m.Name]; ok {
		large = (large*agreed + price - 1) / price // both are at most 1,000 yuan
		price = agreed
	}
	cost := ledger.Sum(ledger.Times(price, p.Images-p.LargeImages), ledger.Times(large, p.LargeImages))
	return ledger.Sum(cost, ledger.Times(m.InputPrices[region], p.Inputs)), true
}

// Cost is the most that some images cost in Beijing, see [Model.CostIn].
func (m Model) Cost(images int) int64 {
	cost, _ := m.CostIn(RegionBeijing, images)
	return cost
}

// CostIn is the most that some images cost in a region, whatever the request, see [Model.CostOf].
func (m Model) CostIn(region string, images int) (microYuan int64, sold bool) {
	return m.ContractCost(nil, region, images)
}

// ContractCost is CostIn with the prices of a contract.
func (m Model) ContractCost(prices map[string]int64, region string, images int) (microYuan int64, sold bool) {
	return m.CostOf(prices, region, m.Most(nil, images))
}
