package notify

import (
	"fmt"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
)

// The languages of alerts.
const (
	english = "en"
	chinese = "zh"
)

// phrase is what is said of an event. The subject and the values are put into sentences in order.
type phrase struct {
	sentence, many [2]string // in English and in Chinese; many precedes a number
	// command shows more, or is what to do; it may have the subject. "" if nothing is to be done.
	command string
}

func phrases() map[jobs.AlertEvent]phrase {
	return map[jobs.AlertEvent]phrase{
		jobs.AlertHeld: {
			[2]string{"job %s is held for a decision: %s", "任务 %s 等待您的决定：%s"},
			[2]string{"jobs held for a decision", "等待您决定的任务"}, "danqing jobs show %s",
		},
		jobs.AlertNotStored: {
			[2]string{
				"the images of job %s are paid for and not in the bucket; they were made at %s, and DashScope keeps them for 24 hours",
				"任务 %s 的图片已付费，但尚未存入存储桶；图片生成于 %s，DashScope 只保留 24 小时",
			},
			[2]string{"jobs whose images are paid for and not in the bucket", "图片已付费但未入库的任务"}, "danqing doctor",
		},
		jobs.AlertPaused: {
			[2]string{"lane %s is paused: %s", "通道 %s 已暂停：%s"}, [2]string{"lanes paused", "暂停的通道"}, "danqing jobs list",
		},
		jobs.AlertResumed: {
			[2]string{"lane %s works again", "通道 %s 已恢复工作"}, [2]string{"lanes that work again", "恢复工作的通道"}, "",
		},
		jobs.AlertBudget80: {
			[2]string{"account %s has spent 80 %% of its budget for today: %s of %s yuan", "账号 %s 已花费今日预算的 80%%：%s 元，预算 %s 元"},
			[2]string{"accounts that have spent 80 % of their budget", "已花费 80% 预算的账号"}, "danqing spend",
		},
		jobs.AlertBudget: {
			[2]string{"account %s has reached its budget for today: %s of %s yuan are spent", "账号 %s 今日预算已用完：已花费 %s 元，预算 %s 元"},
			[2]string{"accounts that have reached their budget", "预算已用完的账号"}, "danqing spend",
		},
		jobs.AlertNoWorker: {
			[2]string{"no worker has a lane for %s, and jobs of it wait: %s", "没有 worker 处理模型 %s，等待中的任务数：%s"},
			[2]string{"models with waiting jobs and no worker", "有任务等待但没有 worker 的模型"}, "DANQING_MODELS=%s danqing worker",
		},
		jobs.AlertCallback: {
			[2]string{"the callback of job %s was given up: %s", "任务 %s 的回调已放弃：%s"},
			[2]string{"callbacks given up", "已放弃的回调"}, "", // the reason says what to do
		},
		jobs.AlertBatchOver: {
			[2]string{
				"batch %s is over: %s jobs succeeded, %s failed, %s were canceled; it cost %s yuan",
				"批次 %s 已结束：成功 %s，失败 %s，取消 %s；花费 %s 元",
			},
			[2]string{"batches that are over", "已结束的批次"}, "",
		},
		jobs.AlertTest: {
			[2]string{"this is a test of alerts by %s", "这是 %s 的告警测试"}, [2]string{"tests", "测试"}, "",
		},
	}
}

// in returns the text of a language.
func in(texts [2]string, language string) string {
	if language == chinese {
		return texts[1]
	}
	return texts[0]
}

// sentence says what an alert is about. It is of any version: what it lacks stays empty.
func sentence(alert jobs.Alert, language string) string {
	said := in(phrases()[alert.Event].sentence, language)
	if said == "" {
		return strings.Join(append([]string{string(alert.Event), alert.Subject}, alert.Values...), " ")
	}
	values := []any{alert.Subject}
	for _, value := range alert.Values {
		values = append(values, value)
	}
	for len(values) < strings.Count(said, "%s") {
		values = append(values, "")
	}
	return fmt.Sprintf(said, values[:strings.Count(said, "%s")]...)
}

// alertText writes a message in lines, as many as fit into a number of bytes.
func alertText(m *jobs.AlertMessage, language string, most int) string {
	lines := make([]string, 0, 2*len(m.Alerts)+1)
	for _, event := range jobs.AlertEvents() {
		lines = append(lines, eventLines(m, event, language)...)
	}
	head := "Danqing: " // a keyword of robots that want one
	if m.Simulated {
		head = in([2]string{"Danqing (simulated): ", "Danqing（模拟）："}, language)
	}
	const cut = "\n…"
	text := head
	for i, line := range lines {
		if i > 0 {
			line = "\n" + line
		}
		if len(text)+len(line)+len(cut) > most {
			return text + cut
		}
		text += line
	}
	return text
}

// eventLines says what is known of one event: a sentence, or a number and the first ones.
func eventLines(m *jobs.AlertMessage, event jobs.AlertEvent, language string) (lines []string) {
	said := phrases()[event]
	for _, alert := range m.Alerts {
		if alert.Event != event {
			continue
		}
		if m.Counts[event] > 1 {
			lines = append(lines, "  "+sentence(alert, language))
			continue
		}
		lines = append(lines, sentence(alert, language))
		if said.command != "" {
			lines = append(lines, "  → "+strings.ReplaceAll(said.command, "%s", alert.Subject))
		}
	}
	if n := m.Counts[event]; n > 1 {
		lines = append([]string{fmt.Sprintf("%s: %d", in(said.many, language), n)}, lines...)
		if more := n - len(lines) + 1; more > 0 {
			lines = append(lines, fmt.Sprintf(in([2]string{"  … and %d more", "  … 另有 %d 个"}, language), more))
		}
	}
	return lines
}
