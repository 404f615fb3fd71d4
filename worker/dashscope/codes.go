package dashscope

import (
	"slices"
	"strings"
)

const (
	hintAccount  = "check the API key, the account's balance and whether the model is activated for it in the Model Studio (百炼) console"
	hintTerminal = "change the request: the service rejects it in its present form"
	hintKey      = "check DASHSCOPE_API_KEY: a key works in its own region only, so it must also match DASHSCOPE_HTTP_BASE_URL"
	hintActivate = "activate the model in the Model Studio (百炼) console, and give the key's workspace the right to call it; a retired model is refused so too: danqing models --check"
	hintModel    = "the service has retired the model, or does not offer it to this account in this region: danqing models --check asks it; cancel the model's jobs or enqueue them with another model"
	hintFree     = "the free quota is used up: switch off \"free quota only\" for the model in the console, or wait for new quota"
	hintPay      = "top up the Alibaba Cloud account; after payment it takes some minutes until the service answers again"
	hintField    = "correct the field named in the message"
	hintImage    = "the reference image must be JPG, PNG, BMP, TIFF or WEBP, at most 10 MB, 256 to 4096 pixels a side, at a public URL without Chinese characters"
	hintModerate = "moderation rejected the prompt or an image: reword the prompt, change the reference, or try another seed"
	hintPace     = "lower the concurrency or wait: the limit counts all keys and programs of the account"
)

// Sources of the table's rows.
const (
	srcErr    = "error-code page"
	srcTasks  = "manage-asynchronous-tasks page"
	srcJava   = "Java SDK 2.22.29, PublicErrorDef"
	srcThird  = "third-party tests only"
	srcV1Page = "text-to-image API reference"
)

// code describes one of the service's codes and the codes below it: InvalidParameter
// also stands for InvalidParameter.DataInspection.
type code struct {
	name    string // as documented; compared without case, spaces and underscores
	message string // if set, the message must contain it, in any case
	kind    Kind   // kind in a 4xx, in a FAILED task or in a result
	hint    string
	source  string
}

// codes returns the table. Rows with a message precede those without.
func codes() []code { return slices.Concat(requestCodes(), accountCodes(), serviceCodes()) }

// requestCodes are those of the request, its image, and moderation.
func requestCodes() []code {
	return []code{
		{"InvalidParameter", "timed out", KindRetry, hintImage, srcErr},
		{"InvalidParameter", messageNoModel, KindModel, hintModel, srcErr},
		{"InvalidParameter", "", KindTerminal, hintField, srcErr + ", " + srcV1Page},
		{"InvalidSchema", "", KindTerminal, hintField, srcErr},
		{"BadRequest.InputDownloadFailed", "", KindTerminal, hintImage, srcErr},
		{"BadRequest", "", KindTerminal, hintField, srcErr},
		{"BadRequestError", "", KindTerminal, hintField, srcJava},
		{"RequestTooLargeError", "", KindTerminal, hintImage, srcJava},
		{"InvalidURL.Timeout", "", KindRetry, hintImage, srcErr},
		{"InvalidURL", "", KindTerminal, hintImage, srcErr},
		{"InvalidFile", "", KindTerminal, hintImage, srcErr},
		{"InvalidImage", "", KindTerminal, hintImage, srcErr},
		{"InvalidImageResolution", "", KindTerminal, hintImage, srcErr},
		{"InvalidImageFormat", "", KindTerminal, hintImage, srcErr},
		{"UnsupportedOperation", "", KindTerminal, hintTerminal, srcTasks},
		// Moderation.
		{"InvalidParameter.DataInspection", "", KindTerminal, hintModerate, srcErr},
		{"DataInspectionFailed", "", KindTerminal, hintModerate, srcErr + ", " + srcV1Page},
		{"IPInfringementSuspect", "", KindTerminal, hintModerate, srcErr},
		{"CustomRoleBlocked", "", KindTerminal, hintModerate, srcErr},
		{"FaqRuleBlocked", "", KindTerminal, hintModerate, srcErr},
	}
}

func accountCodes() []code {
	return []code{
		{"AccessDenied", messageNoModel, KindModel, hintModel, srcErr},
		{"NotFound", messageNoModel, KindModel, hintModel, srcErr},
		{"NotFoundError", messageNoModel, KindModel, hintModel, srcJava},
		{"Arrearage", "", KindAccount, hintPay, srcErr},
		{"CommodityNotPurchased", "", KindAccount, hintActivate, srcErr},
		{"PrepaidBillOverdue", "", KindAccount, hintPay, srcErr},
		{"PostpaidBillOverdue", "", KindAccount, hintPay, srcErr},
		{"BudgetLimitExceeded", "", KindAccount, "raise the budget that is set for the key or workspace in the console", srcThird},
		{"InvalidApiKey", "", KindAccount, hintKey, srcErr},
		{"AuthenticationError", "", KindAccount, hintKey, srcJava},
		{"NOT AUTHORIZED", "", KindAccount, "check the workspace ID, and that the key may use that workspace", srcErr},
		{"AccessDenied", "", KindAccount, hintActivate, srcErr},
		{"PermissionDeniedError", "", KindAccount, hintActivate, srcJava},
		{"Model.AccessDenied", "", KindModel, hintActivate, srcErr},
		{"Workspace.AccessDenied", "", KindAccount, hintActivate, srcErr},
		{"Endpoint.AccessDenied", "", KindModel, hintModel, srcErr},
		{"AllocationQuota.FreeTierOnly", "", KindAccount, hintFree, srcErr},
		{"ModelNotFound", "", KindModel, hintModel, srcErr},
		{"WorkSpaceNotFound", "", KindAccount, "check the workspace ID", srcErr},
		{"NotFound", "", KindAccount, "check DASHSCOPE_HTTP_BASE_URL", srcErr},
		{"NotFoundError", "", KindAccount, "check DASHSCOPE_HTTP_BASE_URL and the model's name", srcJava},
	}
}

// serviceCodes are those of rate limits and of the service's own faults.
func serviceCodes() []code {
	return []code{
		// Rate limits. The free quota shares a code with a throttle.
		{"Throttling.AllocationQuota", "free allocated quota exceeded", KindAccount, hintFree, srcErr},
		{"insufficient_quota", "free allocated quota exceeded", KindAccount, hintFree, srcErr},
		{"Throttling", "", KindThrottled, hintPace, srcErr},
		{"insufficient_quota", "", KindThrottled, hintPace, srcErr},
		{"LimitRequests", "", KindThrottled, hintPace, srcErr},
		{"limit_burst_rate", "", KindThrottled, hintPace, srcErr},
		{"RateLimitError", "", KindThrottled, hintPace, srcJava},
		{"ModelServingError", "", KindThrottled, "", srcErr},
		// The service's side.
		{"InternalError", "", KindRetry, "", srcErr + ", " + srcTasks},
		{"SystemError", "", KindRetry, "", srcErr},
		{"ModelServiceFailed", "", KindRetry, "", srcErr},
		{"RewriteFailed", "", KindRetry, "", srcErr},
		{"RequestTimeOut", "", KindRetry, "", srcErr},
		{"ResponseTimeout", "", KindRetry, "", srcErr},
		{"ModelUnavailable", "", KindRetry, "", srcErr},
		{"InternalServerError", "", KindRetry, "", srcJava},
		{"ServiceUnavailableError", "", KindRetry, "", srcJava},
		{"GatewayTimeoutError", "", KindRetry, "", srcJava},
	}
}

// messageNoModel is in the message for a model that is unknown, or retired (error-code page).
const messageNoModel = "model not exist"

// normalCode makes the spellings of a code equal: InvalidApiKey, invalid_api_key.
func normalCode(name string) string {
	return strings.NewReplacer("_", "", " ", "").Replace(strings.ToLower(name))
}

// findCode returns the most specific row for a code and its message.
func findCode(name, message string) (code, bool) {
	message = strings.ToLower(message)
	for n := normalCode(name); n != ""; n = n[:max(strings.LastIndexByte(n, '.'), 0)] {
		for _, c := range codes() {
			if normalCode(c.name) == n && strings.Contains(message, c.message) {
				return c, true
			}
		}
	}
	return code{}, false
}

// isCapacityCode reports whether a 503 with this code is certainly a refusal.
func isCapacityCode(name string) bool {
	n := normalCode(name)
	return n == normalCode("ModelServingError") || n == normalCode("ModelUnavailable")
}

// ClassifyTask classifies the code of a FAILED task or of a result without a URL:
// [KindTerminal], [KindAccount], [KindModel], [KindThrottled] or [KindRetry]. The task is finished
// and cost nothing, so a retry is a new attempt. An unknown code is KindRetry.
func ClassifyTask(code, message string) Kind {
	if c, ok := findCode(code, message); ok {
		return c.kind
	}
	return KindRetry
}

// Hint returns advice for a code, or "" if the code is unknown or waiting is all that
// helps.
func Hint(code, message string) string {
	c, _ := findCode(code, message)
	return c.hint
}

// CodeName returns a code as it is documented, "" if it is unknown.
func CodeName(name string) string {
	for n := normalCode(name); n != ""; n = n[:max(strings.LastIndexByte(n, '.'), 0)] {
		for _, c := range codes() {
			if normalCode(c.name) == n {
				return c.name
			}
		}
	}
	return ""
}

// IsAccessDenied reports whether a code is AccessDenied, which does not tell what was denied: the
// account, or one model.
func IsAccessDenied(code string) bool { return CodeName(code) == "AccessDenied" }

// IsModeration reports whether a code means that moderation refused a prompt or an image.
func IsModeration(code string) bool { return Hint(code, "") == hintModerate }
