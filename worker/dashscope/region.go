package dashscope

import "strings"

// Regions of the service, spelt as in its host names (base-url page of Model
// Studio). A key belongs to one of them.
const (
	RegionBeijing   = "cn-beijing"
	RegionSingapore = "ap-southeast-1"
	RegionVirginia  = "us-east-1"
	RegionHongKong  = "cn-hongkong"
)

// Region is where the service of the base URL is, which decides the models that
// exist there, their spelling and their prices:
//
//   - the shared hosts dashscope, dashscope-intl, dashscope-us and
//     cn-hongkong.dashscope (.aliyuncs.com): Beijing, Singapore, Virginia and
//     Hong Kong;
//   - a workspace's or trial host, {id}.{region}.maas.aliyuncs.com: the region
//     that it names, whatever it is;
//   - any other host, such as a proxy, a simulator or loopback: Beijing. Whoever
//     reaches another region through a proxy of their own is shown Beijing's
//     models and prices.
func (c *Client) Region() string {
	host := strings.ToLower(strings.TrimSuffix(c.base.Hostname(), "."))
	switch host {
	case "dashscope-intl.aliyuncs.com":
		return RegionSingapore
	case "dashscope-us.aliyuncs.com":
		return RegionVirginia
	case "cn-hongkong.dashscope.aliyuncs.com":
		return RegionHongKong
	}
	workspace, ok := strings.CutSuffix(host, ".maas.aliyuncs.com")
	if id, region, found := strings.Cut(workspace, "."); ok && found && id != "" && region != "" {
		return region
	}
	return RegionBeijing
}
