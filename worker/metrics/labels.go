package metrics

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// other is the label of a code that is not known: the number of labels is bounded.
const other = "other"

// codeLabel returns the label of a code: of Danqing's, or of the service's as it is documented.
func codeLabel(code string) string {
	if slices.Contains(ownCodes(), code) {
		return code
	}
	return cmp.Or(dashscope.CodeName(code), other)
}

// ownCodes are the codes of failed and held jobs.
func ownCodes() []string {
	return []string{
		jobs.CodeSubmitAmbiguous, jobs.CodeOrphanedTask, jobs.CodeBudgetExceeded, jobs.CodeTaskUnknown, jobs.CodeNoImages, jobs.CodeImageUnverified,
		jobs.CodeSpoolUnavailable, jobs.CodeRecordRefused, jobs.CodeAbandoned, jobs.CodeDeadlineExceeded, jobs.CodeModelNotInRegion, jobs.CodeRequestRefused, jobs.CodeReferenceMissing,
		jobs.CodeReferenceRejected, jobs.CodeJobIDTaken, jobs.CodeSidecarUnreadable, jobs.CodeRecordCorrupt, jobs.CodeArchived, jobs.CodeMessageLost,
		jobs.CodeImageMissing, jobs.CodeResultExpired,
	}
}

// statusLabel returns the label of an HTTP status, 0 if there was no answer.
func statusLabel(status int) string {
	switch {
	case status == 0:
		return "none"
	case status < 100 || status > 599:
		return other
	}
	return strconv.Itoa(status)
}
