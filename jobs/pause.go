package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// Pause is a decision to pause or to resume an account or a model. Either Account or Model
// is set.
type Pause struct {
	Decision
	Account string `json:"account,omitempty"`
	Model   string `json:"model,omitempty"`
}

// ByWebUI is the [Decision.By] of what was done in asynq's web UI, which does not know its
// users.
const ByWebUI = "asynq's web UI"

// pausesKept is how many pauses and resumes Redis keeps.
const pausesKept = 100

// PauseAccount stops the submits of all lanes of an account until [Inspector.ResumeAccount]:
// they draw no job, and take back what they have prepared. Running tasks are finished, and
// their images stored. An account that is paused gets the new decision. It fails with a
// [FieldError] if the name or by is invalid, or with Redis's own error.
func (i *Inspector) PauseAccount(ctx context.Context, account string, by Decider) error {
	if err := ValidAccount(account); err != nil {
		return fmt.Errorf("pause account: %w", err)
	}
	return i.store.pause(ctx, Pause{Account: account}, ActionPause, by, func(tx redis.Pipeliner, encoded []byte) {
		tx.HSet(ctx, rediskey.PausedAccounts, account, encoded)
	})
}

// ResumeAccount ends an account's pause, if it has one. It fails as [Inspector.PauseAccount]
// does.
func (i *Inspector) ResumeAccount(ctx context.Context, account string, by Decider) error {
	if err := ValidAccount(account); err != nil {
		return fmt.Errorf("resume account: %w", err)
	}
	return i.store.pause(ctx, Pause{Account: account}, ActionResume, by, func(tx redis.Pipeliner, _ []byte) {
		tx.HDel(ctx, rediskey.PausedAccounts, account)
	})
}

// PauseModel stops the submits of all lanes of a model, as [Inspector.PauseAccount] does those
// of an account, until [Inspector.ResumeModel]. Jobs of every priority wait, critical ones too.
// It pauses the model's queues: asynq's own tools show that, and can resume them. It fails
// with a [FieldError] if the model is unknown or by is invalid, or with Redis's own error.
func (i *Inspector) PauseModel(ctx context.Context, model string, by Decider) error {
	return i.store.PauseModel(ctx, model, by)
}

// PauseModel is [Inspector.PauseModel].
func (s *Store) PauseModel(ctx context.Context, model string, by Decider) error {
	if _, err := LookupModel(model); err != nil {
		return fmt.Errorf("pause model: %w", err)
	}
	return s.pause(ctx, Pause{Model: model}, ActionPause, by, func(tx redis.Pipeliner, encoded []byte) {
		for _, key := range pausedKeys(model) {
			tx.Set(ctx, key, encoded, 0)
		}
		for queue := range LaneQueues(model) {
			tx.SAdd(ctx, asynqQueues, queue)
		}
	})
}

// ResumeModel ends a model's pause, and that of each of its queues. It fails as
// [Inspector.PauseModel] does.
func (i *Inspector) ResumeModel(ctx context.Context, model string, by Decider) error {
	if _, err := LookupModel(model); err != nil {
		return fmt.Errorf("resume model: %w", err)
	}
	return i.store.pause(ctx, Pause{Model: model}, ActionResume, by, func(tx redis.Pipeliner, _ []byte) {
		tx.Del(ctx, pausedKeys(model)...)
	})
}

// pausedKeys are asynq's keys that pause the queues of a model. asynq checks only whether they
// exist.
func pausedKeys(model string) []string {
	var keys []string
	for _, priority := range priorities() {
		keys = append(keys, asynqPaused(Queue(model, priority)))
	}
	return keys
}

// pause makes a decision: write does it, in the transaction that adds it to the history.
func (s *Store) pause(ctx context.Context, p Pause, action string, by Decider, write func(tx redis.Pipeliner, encoded []byte)) error {
	what := p.Account + p.Model
	var err error
	if p.Decision, err = by.decision(action); err != nil {
		return fmt.Errorf("%s %s: %w", action, what, err)
	}
	encoded, err := compactjson.Marshal(p)
	if err == nil {
		_, err = s.redis.TxPipelined(ctx, func(tx redis.Pipeliner) error {
			write(tx, encoded)
			tx.LPush(ctx, rediskey.Pauses, encoded)
			tx.LTrim(ctx, rediskey.Pauses, 0, pausesKept-1)
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", action, what, err)
	}
	return nil
}

// LanePause returns the pause of a lane, by an operator: that of its account, else that of its
// model; nil if it has none. It fails with Redis's own error. A lane calls it before each
// submit, and must not submit if it fails.
func (s *Store) LanePause(ctx context.Context, account, model string) (*Pause, error) {
	var ofAccount *redis.StringCmd
	var ofQueues *redis.SliceCmd
	_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		ofAccount, ofQueues = p.HGet(ctx, rediskey.PausedAccounts, account), p.MGet(ctx, pausedKeys(model)...)
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("read pause of account %s and model %s: %w", account, model, err)
	}
	if encoded := ofAccount.Val(); encoded != "" {
		pause, err := decodePause(encoded)
		if err != nil {
			return nil, fmt.Errorf("read pause of account %s: %w", account, err)
		}
		return pause, nil
	}
	var pause *Pause
	for _, value := range ofQueues.Val() {
		encoded, paused := value.(string)
		if !paused { // a part of the queues may be paused, which stops only their jobs
			return nil, nil //nolint:nilnil // "not paused" is an answer, not a failure
		}
		if pause, err = decodePause(encoded); err != nil {
			pause = &Pause{Model: model, Decision: Decision{Action: ActionPause, By: ByWebUI}}
			if at, err := strconv.ParseInt(encoded, 10, 64); err == nil {
				pause.At = time.Unix(at, 0).UTC()
			}
		}
	}
	return pause, nil
}

func decodePause(encoded string) (*Pause, error) {
	var pause Pause
	err := json.Unmarshal([]byte(encoded), &pause)
	return &pause, err
}

// PauseHistory returns the last pauses and resumes of accounts and models, at most 100, the
// newest first. What was done in asynq's web UI is not among them. It fails with Redis's own
// error.
func (i *Inspector) PauseHistory(ctx context.Context) ([]Pause, error) {
	encoded, err := i.store.redis.LRange(ctx, rediskey.Pauses, 0, -1).Result()
	if err != nil {
		return nil, fmt.Errorf("read pauses: %w", err)
	}
	list := make([]Pause, 0, len(encoded))
	for _, text := range encoded {
		pause, err := decodePause(text)
		if err != nil {
			return nil, fmt.Errorf("read pauses: %w", err)
		}
		list = append(list, *pause)
	}
	return list, nil
}
