package worker

import (
	"errors"
	"fmt"
	"slices"

	"github.com/danqing-queue/danqing/jobs"
)

// Ready fails unless the worker can work: it is prepared, and one of its lanes may start jobs or
// waits until another worker gives it up. A lane that an operator has paused, whose budget is
// spent or that the service throttles counts as one that may: it goes on by itself.
func (w *Worker) Ready() error {
	if !w.prepared.Load() {
		if err := w.accounts.Waiting(); err != nil {
			return fmt.Errorf("no account is usable: %w", err)
		}
		return errors.New("the worker is starting")
	}
	var problems []error
	for _, l := range w.lanes {
		held, _ := w.laneStates.Load([2]string{l.Account.Name, l.Model.Name})
		status, _ := held.(jobs.LaneStatus)
		if status.State != jobs.LanePaused || slices.Contains([]jobs.PauseReason{jobs.PauseOperator, jobs.PauseBudget, jobs.PauseThrottled}, status.Reason) {
			return nil
		}
		problems = append(problems, fmt.Errorf("the lane for %s of account %s is paused: %s", l.Model.Name, l.Account.Name, status.Message))
	}
	return errors.Join(problems...)
}
