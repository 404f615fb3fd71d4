package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// ValidAccount fails unless name is valid for an account: 1 to 64 characters out of A-Z,
// a-z, 0-9, dot, underscore and hyphen. The error is a [FieldError].
func ValidAccount(name string) error {
	if rediskey.ValidName(name) {
		return nil
	}
	return FieldError{Field: "account", Value: show(name), Allowed: "1 to 64 of A-Z a-z 0-9 . _ -"}
}

// LaneState is whether a lane starts jobs.
type LaneState string

// The states of a lane.
const (
	LaneOpen LaneState = "open"
	// LanePaused starts no job: Code and Message of its [LaneStatus] say why.
	LanePaused LaneState = "paused"
)

// LaneStatus is what the worker that holds a lane last reported, for people.
type LaneStatus struct {
	Account     string    `json:"account"`
	Model       string    `json:"model"`
	Term        int64     `json:"term"`
	Concurrency int       `json:"concurrency"` // tasks at once
	State       LaneState `json:"state"`
	Code        string    `json:"code,omitempty"`
	Message     string    `json:"message,omitempty"`
	Simulated   bool      `json:"simulated,omitempty"`
	At          time.Time `json:"at"`                // when it was reported
	RetryAt     time.Time `json:"retry_at,omitzero"` // when a paused lane tries again
	// Held reports whether a worker holds the lane's lease; [Inspector.Lanes] sets it. A
	// lane that is not held does nothing; its State is out of date.
	Held bool `json:"held"`
}

// SetLane publishes a lane's status. Only the worker that holds the lane may call it.
func (s *Store) SetLane(ctx context.Context, lane LaneStatus) error {
	if err := ValidAccount(lane.Account); err != nil {
		return fmt.Errorf("publish lane: %w", err)
	}
	lane.Held = false
	encoded, err := compactjson.Marshal(lane)
	if err == nil {
		err = s.redis.HSet(ctx, rediskey.Lanes, lane.Account+":"+lane.Model, encoded).Err()
	}
	if err != nil {
		return fmt.Errorf("publish lane %s of %s: %w", lane.Model, lane.Account, err)
	}
	return nil
}

// Lanes returns every lane that was ever open, by account and model. It fails with
// Redis's own error.
func (i *Inspector) Lanes(ctx context.Context) ([]LaneStatus, error) {
	fields, err := i.store.redis.HGetAll(ctx, rediskey.Lanes).Result()
	if err != nil {
		return nil, fmt.Errorf("read lanes: %w", err)
	}
	lanes := make([]LaneStatus, 0, len(fields))
	for field, encoded := range fields {
		var lane LaneStatus
		if err := json.Unmarshal([]byte(encoded), &lane); err != nil {
			return nil, fmt.Errorf("read lane %s: %w", field, err)
		}
		lanes = append(lanes, lane)
	}
	slices.SortFunc(lanes, func(a, b LaneStatus) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Model, b.Model))
	})
	for n, lane := range lanes {
		held, err := i.store.redis.Exists(ctx, rediskey.Lane(lane.Account, lane.Model, rediskey.LaneLease)).Result()
		if err != nil {
			return nil, fmt.Errorf("read lease of lane %s of %s: %w", lane.Model, lane.Account, err)
		}
		lanes[n].Held = held == 1
	}
	return lanes, nil
}

// Pause is an operator's pause of an account.
type Pause struct {
	Account string    `json:"account"`
	Reason  string    `json:"reason,omitempty"`
	At      time.Time `json:"at"`
}

// PauseAccount stops the submits of all lanes of an account until
// [Inspector.ResumeAccount]. Running tasks are finished, and their images stored. A
// paused account gets the new reason. It fails with a [FieldError] if the name is
// invalid, or with Redis's own error.
func (i *Inspector) PauseAccount(ctx context.Context, account, reason string) error {
	if err := ValidAccount(account); err != nil {
		return fmt.Errorf("pause account: %w", err)
	}
	encoded, err := compactjson.Marshal(Pause{Account: account, Reason: reason, At: time.Now().UTC()})
	if err == nil {
		err = i.store.redis.HSet(ctx, rediskey.PausedAccounts, account, encoded).Err()
	}
	if err != nil {
		return fmt.Errorf("pause account %s: %w", account, err)
	}
	return nil
}

// ResumeAccount removes an account's pause, if it has one.
func (i *Inspector) ResumeAccount(ctx context.Context, account string) error {
	if err := i.store.redis.HDel(ctx, rediskey.PausedAccounts, account).Err(); err != nil {
		return fmt.Errorf("resume account %s: %w", account, err)
	}
	return nil
}

// AccountPause returns an account's pause, nil if it has none. A lane calls it before
// each submit, and must not submit if it fails.
func (s *Store) AccountPause(ctx context.Context, account string) (*Pause, error) {
	encoded, err := s.redis.HGet(ctx, rediskey.PausedAccounts, account).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil //nolint:nilnil // "not paused" is an answer, not a failure
	}
	var pause Pause
	if err == nil {
		err = json.Unmarshal(encoded, &pause)
	}
	if err != nil {
		return nil, fmt.Errorf("read pause of account %s: %w", account, err)
	}
	return &pause, nil
}
