package dashscope

import (
	"net/url"
	"strings"
)

// Regions of the service, spelled as in its host names (base-url page of Model Studio).
// A key belongs to one of them.
const (
	RegionBeijing   = "cn-beijing"
	RegionSingapore = "ap-southeast-1"
	RegionVirginia  = "us-east-1"
	RegionHongKong  = "cn-hongkong"
	RegionFrankfurt = "eu-central-1"
	RegionTokyo     = "ap-northeast-1"
)

// RegionOf returns the region of a base URL, which determines the available models,
// their spelling and their prices; "" if [Config] rejects the URL:
//
//   - the shared hosts dashscope, dashscope-intl, dashscope-us and
//     cn-hongkong.dashscope (.aliyuncs.com): Beijing, Singapore, Virginia and
//     Hong Kong;
//   - a workspace's or trial host, {id}.{region}.maas.aliyuncs.com: the region
//     in its name;
//   - any other host, such as a proxy, a simulator or loopback: Beijing. Behind
//     a proxy to another region, Beijing's models and prices are shown.
//
// A base URL of "" is [DefaultBaseURL].
func RegionOf(baseURL string) string {
	base, err := parseBaseURL(baseURL)
	if err != nil {
		return ""
	}
	return regionOf(base)
}

// Region returns the region of the client's base URL, as [RegionOf] does.
func (c *Client) Region() string { return regionOf(c.base) }

func regionOf(base *url.URL) string {
	host := strings.ToLower(strings.TrimSuffix(base.Hostname(), "."))
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
