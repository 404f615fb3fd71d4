package dashscope

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The whole table of errors: what each code means on a create, on a query and in a
// FAILED task. Its rows are those of the service's error-code page and of the SDKs.
func TestCodes(t *testing.T) {
	t.Parallel()
	const (
		R, T, A, X = KindRetry, KindThrottled, KindAccount, KindTerminal
		amb, ref   = KindAmbiguous, KindRefused
		M          = KindModel
		tmp        = KindTemporary
	)
	for _, tc := range []struct {
		status              int
		code, message       string
		create, query, task Kind
	}{
		{400, "InvalidParameter", "size must be in …", X, tmp, X},
		{400, "InvalidParameter", "Model not exist.", M, tmp, M},
		{400, "InvalidParameter", "Download the media resource timed out during the data inspection process.", R, tmp, R},
		{400, "InvalidParameter", "Failed to download multimodal content", X, tmp, X},
		{400, "InvalidParameter.DataInspection", "Unable to download the media resource", X, tmp, X},
		{400, "BadRequest.EmptyInput", "", X, tmp, X},
		{400, "BadRequest.EmptyModel", "", X, tmp, X},
		{400, "BadRequest.EmptyParameters", "", X, tmp, X},
		{400, "BadRequest.IllegalInput", "", X, tmp, X},
		{400, "BadRequest.InputDownloadFailed", "", X, tmp, X},
		{400, "InvalidSchema", "", X, tmp, X},
		{400, "InvalidURL", "", X, tmp, X},
		{400, "InvalidURL.ConnectionRefused", "", X, tmp, X},
		{400, "InvalidURL.Timeout", "", R, tmp, R},
		{400, "InvalidFile.Format", "", X, tmp, X},
		{400, "InvalidImage.FileFormat", "", X, tmp, X},
		{400, "InvalidImageResolution", "", X, tmp, X},
		{400, "InvalidImageFormat", "", X, tmp, X},
		{400, "DataInspectionFailed", "", X, tmp, X},
		{400, "data_inspection_failed", "", X, tmp, X},
		{400, "IPInfringementSuspect", "", X, tmp, X},
		{400, "CustomRoleBlocked", "", X, tmp, X},
		{400, "FaqRuleBlocked", "", X, tmp, X},
		{400, "Arrearage", "", A, A, A},
		{400, "UnsupportedOperation", "", X, tmp, X},
		{400, "BadRequestError", "", X, tmp, X},
		{400, "SomethingNew", "", X, tmp, R},
		{413, "RequestTooLargeError", "", X, tmp, X},
		{401, "InvalidApiKey", "", A, A, A},
		{401, "invalid_api_key", "", A, A, A},
		{401, "NOT AUTHORIZED", "", A, A, A},
		{401, "AuthenticationError", "", A, A, A},
		{401, "SomethingNew", "", A, A, R},
		{403, "AccessDenied", "current user api does not support synchronous calls", A, A, A},
		{403, "access_denied", "", A, A, A},
		{403, "AccessDenied.Unpurchased", "", A, A, A},
		{403, "access_denied", "Model not exist.", M, tmp, M},
		{403, "Model.AccessDenied", "", M, tmp, M},
		{403, "Workspace.AccessDenied", "", A, A, A},
		{403, "Endpoint.AccessDenied", "", M, tmp, M},
		{403, "AllocationQuota.FreeTierOnly", "", A, A, A},
		{403, "PermissionDeniedError", "", A, A, A},
		{403, "SomethingNew", "", A, A, R},
		{404, "ModelNotFound", "", M, tmp, M},
		{404, "model_not_found", "", M, tmp, M},
		{404, "NotFound", "Model not exist", M, tmp, M},
		{404, "WorkSpaceNotFound", "", A, tmp, A},
		{404, "NotFound", "", A, tmp, A},
		{404, "NotFoundError", "", A, tmp, A},
		{404, "SomethingNew", "", A, tmp, R},
		{429, "Throttling", "Requests throttling triggered.", T, T, T},
		{429, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later.", T, T, T},
		{429, "LimitRequests", "You exceeded your current requests list.", T, T, T},
		{429, "limit_requests", "", T, T, T},
		{429, "Throttling.BurstRate", "", T, T, T},
		{429, "limit_burst_rate", "", T, T, T},
		{429, "Throttling.AllocationQuota", "Allocated quota exceeded, please increase your quota limit.", T, T, T},
		{429, "insufficient_quota", "Allocated quota exceeded", T, T, T},
		{429, "Throttling.AllocationQuota", "Free allocated quota exceeded.", A, A, A},
		{429, "insufficient_quota", "Free allocated quota exceeded.", A, A, A},
		{429, "Throttling.ServiceOverloaded", "", T, T, T},
		{429, "BudgetLimitExceeded", "", A, A, A},
		{429, "CommodityNotPurchased", "", A, A, A},
		{429, "PrepaidBillOverdue", "", A, A, A},
		{429, "PostpaidBillOverdue", "", A, A, A},
		{429, "RateLimitError", "Too many concurrent requests", T, T, T},
		{429, "SomethingNew", "", T, T, R},
		{500, "InternalError", "", amb, tmp, R},
		{500, "internal_error", "", amb, tmp, R},
		{500, "InternalError.Algo", "", amb, tmp, R},
		{500, "InternalError.Upload", "", amb, tmp, R},
		{500, "InternalError.FileUpload", "", amb, tmp, R},
		{500, "InternalError.Timeout", "", amb, tmp, R},
		{500, "SystemError", "", amb, tmp, R},
		{500, "ModelServiceFailed", "", amb, tmp, R},
		{500, "RewriteFailed", "", amb, tmp, R},
		{500, "RequestTimeOut", "", amb, tmp, R},
		{500, "ResponseTimeout", "", amb, tmp, R},
		{500, "InternalServerError", "", amb, tmp, R},
		{500, "ModelServingError", "", amb, tmp, T},
		{500, "Arrearage", "", amb, tmp, A},
		{503, "ModelServingError", "", ref, tmp, T},
		{503, "ModelUnavailable", "", ref, tmp, R},
		{503, "ServiceUnavailableError", "", amb, tmp, R},
		{504, "GatewayTimeoutError", "", amb, tmp, R},
	} {
		e := Error{Op: opCreate, Status: tc.status, Code: tc.code, Message: tc.message}
		assert.Equal(t, tc.create, createKind(&e, true), "create: %v", &e)
		for _, op := range []string{opQuery, opList} {
			e.Op = op
			assert.Equal(t, tc.query, otherKind(&e), "%v", &e)
		}
		assert.Equal(t, tc.task, ClassifyTask(tc.code, tc.message), "in a task: %v", &e)
	}
}

// Every row of the table names its source, is of a kind that a task can fail with, has
// a hint if an operator must act, and is not hidden by an earlier row.
func TestCodesAreWellFormed(t *testing.T) {
	t.Parallel()
	for _, c := range codes() {
		assert.NotEmpty(t, c.source, c.name)
		assert.Contains(t, []Kind{KindTerminal, KindAccount, KindModel, KindThrottled, KindRetry}, c.kind, c.name)
		if c.kind == KindAccount || c.kind == KindModel || c.kind == KindTerminal {
			assert.NotEmpty(t, c.hint, c.name)
		}
		found, ok := findCode(c.name, c.message)
		require.True(t, ok, c.name)
		assert.Equal(t, c, found)
	}
}

func TestHints(t *testing.T) {
	t.Parallel()
	assert.Equal(t, hintPay, Hint("Arrearage", ""))
	assert.Equal(t, hintFree, Hint("Throttling.AllocationQuota", "Free allocated quota exceeded."))
	assert.Equal(t, hintModerate, Hint("InvalidParameter.DataInspection", ""))
	assert.Empty(t, Hint("", ""))
	assert.Empty(t, Hint("SomethingNew", ""))

	assert.Equal(t, hintPay, (&Error{Code: "Arrearage", Kind: KindAccount}).Hint())
	assert.Equal(t, hintAccount, (&Error{Code: "SomethingNew", Kind: KindAccount}).Hint())
	assert.Equal(t, hintTerminal, (&Error{Kind: KindTerminal}).Hint())
	assert.Contains(t, (&Error{Kind: KindRefused}).Hint(), "HTTPS_PROXY")
	assert.Contains(t, (&Error{Kind: KindTemporary, Status: 404}).Hint(), "DASHSCOPE_HTTP_BASE_URL")
	assert.Contains(t, (&Error{Kind: KindAmbiguous}).Hint(), "before submitting again")
	assert.Empty(t, (&Error{Kind: KindRetry, Code: "InternalError"}).Hint())
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const now = "Sun, 22 Nov 2026 10:00:00 GMT"
	for v, want := range map[string]time.Duration{
		"": 0, "soon": 0, "7": 7 * time.Second, "-1": 0, "99999999999999": 24 * time.Hour, "9999999": 24 * time.Hour,
		"Sun, 22 Nov 2026 10:00:30 GMT": 30 * time.Second,
		"Sun, 22 Nov 2026 09:00:00 GMT": 0,
		"Sun, 22 Nov 2037 09:00:00 GMT": 24 * time.Hour,
	} {
		assert.Equal(t, want, retryAfter(answer{header: http.Header{"Retry-After": {v}, "Date": {now}}}), v)
	}
}

// A server's text in errors and logs has no key and no signatures, is one line, and has
// a bounded length.
func TestErrorTextIsClean(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, reply(400, `{"code":"InvalidParameter\n","request_id":"r\n1","message":"key `+testKey+
		`\nurl https://b.oss-cn-beijing.aliyuncs.com/a.png?Expires=1&Signature=s3cret end"}`), Config{})
	_, err := c.Create(t.Context(), CreateRequest{})
	require.EqualError(t, err, "dashscope create: HTTP 400: InvalidParameter: key **redacted** "+
		"url https://b.oss-cn-beijing.aliyuncs.com/a.png?**redacted** end (request_id r 1)")

	long := &Error{Op: "query", Err: errors.New(string(make([]byte, 5000)) + string([]byte{0xff}) + "x")}
	assert.Equal(t, "dashscope query: ?x", long.Error())
	assert.Len(t, []rune(clean(string(make([]rune, 9))+"水"+string(bytesOf('x', 5000)))), maxTextRunes+1)
}

func bytesOf(c byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = c
	}
	return b
}
