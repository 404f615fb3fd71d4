package account

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/loop"
)

// Errors of accounts.
var (
	// ErrGateway means that the base URL is Danqing's own API.
	ErrGateway = errors.New("the DashScope base URL is Danqing's own API, which would submit to itself: set DASHSCOPE_HTTP_BASE_URL to DashScope's own address")
	// ErrSameAccount means that two configured accounts are one main account and share
	// its limits.
	ErrSameAccount = errors.New("two accounts are the same Alibaba main account and would exceed its limits together: remove one of them")
	// ErrMixed means that one account uses the simulator and another does not.
	ErrMixed = errors.New("one account uses the simulator and another does not: simulated and real images must not be mixed")
)

// Set is a worker's accounts.
type Set struct {
	All []*Account
	Log *slog.Logger
	// WaitForKey makes [Set.ProbeAll] go on while every key is refused.
	WaitForKey bool

	mu sync.Mutex
	// waiting is why no account is usable yet.
	waiting error
	mode    jobs.Mode // of the services, "" until one has answered a probe
}

// Named returns the account with a name, or nil.
func (s *Set) Named(name string) *Account {
	for _, a := range s.All {
		if a.Name == name {
			return a
		}
	}
	return nil
}

// Mode returns what the services make, "" until one has answered a probe.
func (s *Set) Mode() jobs.Mode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mode
}

// Simulated reports whether the services are simulators, once one has answered a probe.
func (s *Set) Simulated() bool { return s.Mode() == jobs.ModeSimulated }

// Waiting returns why [Set.ProbeAll] still waits, nil if it does not.
func (s *Set) Waiting() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

func (s *Set) setWaiting(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = why
}

// isOf reports whether a service's mode is that of the other accounts' services.
func (s *Set) isOf(mode jobs.Mode) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode = cmp.Or(s.mode, mode)
	return s.mode == mode
}

// Probe checks what service is at an account's base URL and whether it accepts the key. It
// costs nothing.
func (s *Set) Probe(ctx context.Context, a *Account) error {
	endpoint, err := a.Client.Probe(ctx)
	switch {
	case err != nil:
		return err
	case endpoint.Gateway:
		err = ErrGateway
	case !s.isOf(jobs.ModeOf(endpoint.Simulated)):
		err = ErrMixed
	default:
		a.setOwner(endpoint.Owner)
		return nil
	}
	a.disable(err)
	return err
}

// isKeyRefused reports whether the service refuses the account.
func isKeyRefused(err error) bool {
	var refusal *dashscope.Error
	return errors.As(err, &refusal) && (refusal.Kind == dashscope.KindAccount || refusal.Kind == dashscope.KindTerminal)
}

// ProbeOnce probes every account once, and returns the error of each. It fails if one can
// never be usable.
func (s *Set) ProbeOnce(ctx context.Context) ([]error, error) {
	errs := make([]error, len(s.All))
	var group sync.WaitGroup
	for i, a := range s.All {
		group.Go(func() { errs[i] = s.Probe(ctx, a) })
	}
	group.Wait()
	for i, err := range errs {
		if errors.Is(err, ErrGateway) || errors.Is(err, ErrMixed) {
			return errs, fmt.Errorf("account %s: %w", s.All[i].Name, err)
		}
	}
	return errs, nil
}

// ProbeAll probes every account, until at least one is usable. It fails if none can become
// usable, or with the cause of ctx.
func (s *Set) ProbeAll(ctx context.Context) error {
	defer s.setWaiting(nil)
	for retry := (&loop.Backoff{First: time.Second, Most: time.Minute}); ; {
		errs, err := s.ProbeOnce(ctx)
		if err != nil {
			return err
		}
		verified, refused := 0, 0
		for _, err := range errs {
			switch {
			case err == nil:
				verified++
			case isKeyRefused(err):
				refused++
			}
		}
		if verified > 0 {
			return s.checkDistinct()
		}
		err = errors.Join(errs...)
		s.setWaiting(err)
		if refused == len(s.All) && !s.WaitForKey {
			return err
		}
		wait := retry.Next()
		hint := ""
		if failure := new(dashscope.Error); errors.As(err, &failure) {
			hint = failure.Hint()
		}
		s.Log.Warn("dashscope unavailable: nothing starts until it answers", "err", err, "wait", wait, "hint", hint)
		if err := loop.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// checkDistinct fails with ErrSameAccount if two accounts are known to be the same main
// account, and disables the later one.
func (s *Set) checkDistinct() error {
	first := map[string]string{}
	for _, a := range s.All {
		owner := a.owner()
		if owner == "" {
			continue
		}
		at := a.Client.Region() + " " + owner
		if other, taken := first[at]; taken {
			err := fmt.Errorf("%s and %s: %w", other, a.Name, ErrSameAccount)
			a.disable(err)
			return err
		}
		first[at] = a.Name
	}
	return nil
}

// DiscoverOwners finds the main account's number of accounts that had no task in the list
// at start, and disables an account that turns out to be the same as another.
func (s *Set) DiscoverOwners(ctx context.Context) {
	for _, a := range s.All {
		if verified, _ := a.Usable(); !verified || a.owner() != "" || len(s.All) == 1 {
			continue
		}
		if endpoint, err := a.Client.Probe(ctx); err == nil {
			a.setOwner(endpoint.Owner)
		}
	}
	if err := s.checkDistinct(); err != nil {
		s.Log.Error("account disabled", "err", err)
	}
}
