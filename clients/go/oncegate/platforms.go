package oncegate

import (
	"bytes"
	"encoding/json"
	"net/http"
	"time"

	pb "github.com/oncegate/oncegate/clients/go/internal/pb/oncegate/v1"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
)

// A payload is a delivery as its platform sent it. The server reads the names from it.
type payload struct {
	platform pb.Platform
	headers  map[string]string
	body     []byte
}

// Slack is a delivery of Slack: the body of a request, or a Socket Mode frame or its payload. Verify the
// signature first. Slack redelivers events that were not acknowledged, but not interactions and commands.
func Slack(body []byte) Delivery {
	d := fromPlatform(pb.Platform_PLATFORM_SLACK, body)
	d.SentOnce = !isSlackEvent(body)
	return d
}

// GitHub is a delivery of a GitHub webhook. Verify X-Hub-Signature-256 first. All webhooks of a repository
// get the same delivery id: with several of them, set the gate's consumer. GitHub redelivers only on
// request, so the event stays processed for 7 days.
func GitHub(header http.Header, body []byte) Delivery {
	d := fromPlatform(pb.Platform_PLATFORM_GITHUB, body)
	d.payload.headers = pick(header, "X-GitHub-Delivery")
	d.TTL, d.SentOnce = week, true
	return d
}

// Discord is an interaction or a gateway event, as Discord sent it. Discord does not redeliver.
func Discord(body []byte) Delivery {
	d := fromPlatform(pb.Platform_PLATFORM_DISCORD, body)
	d.SentOnce = true
	return d
}

// Telegram is an update of a bot. team is the bot: an update does not name it. The event stays processed
// for 2 days, because update ids may start again after a week.
func Telegram(team string, body []byte) Delivery {
	d := fromPlatform(pb.Platform_PLATFORM_TELEGRAM, body)
	d.Team, d.TTL = team, 2*day
	return d
}

// Teams is an activity of Microsoft Teams. Verify the token first.
func Teams(body []byte) Delivery { return fromPlatform(pb.Platform_PLATFORM_TEAMS, body) }

// Stripe is an event of Stripe. Verify Stripe-Signature first. Set Team for your own account's events.
// Stripe retries for 3 days, so the event stays processed for 7 days.
func Stripe(body []byte) Delivery {
	d := fromPlatform(pb.Platform_PLATFORM_STRIPE, body)
	d.TTL = week
	return d
}

// StandardWebhooks is a request of a sender that follows https://www.standardwebhooks.com. Verify the
// signature first. The request names no tenant, and there is no conversation. The event stays processed for
// 7 days.
func StandardWebhooks(team string, header http.Header, body []byte) Delivery {
	d := fromPlatform(pb.Platform_PLATFORM_STANDARD_WEBHOOKS, body)
	d.payload.headers = pick(header, "webhook-id")
	d.Team, d.TTL = team, week
	return d
}

func fromPlatform(platform pb.Platform, body []byte) Delivery {
	return Delivery{payload: &payload{platform: platform, body: cut(body)}}
}

// pick returns only the headers with these names.
func pick(header http.Header, names ...string) map[string]string {
	picked := map[string]string{}
	for _, name := range names {
		if value := header.Get(name); value != "" {
			picked[name] = value
		}
	}
	return picked
}

func isSlackEvent(body []byte) bool {
	var read struct {
		Type    string
		Payload struct{ Type string }
	}
	// A form, and a command's payload that is text, are no events.
	if json.Unmarshal(body, &read) != nil {
		return false
	}
	return read.Type == "event_callback" || read.Payload.Type == "event_callback"
}

// A body of more bytes is cut: no longer texts, and no longer lists, than the following.
const (
	largeBody = 200 * 1024
	longText  = 1024
	longList  = 16
)

// cut leaves out what names nothing: the server takes 256 KiB, and GitHub sends up to 25 MB.
func cut(body []byte) []byte {
	if len(body) <= largeBody {
		return body
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var value any
	if decoder.Decode(&value) != nil {
		return body // not JSON
	}
	shorter, err := json.Marshal(shortened(value))
	if err != nil {
		return body
	}
	return shorter
}

func shortened(value any) any {
	switch value := value.(type) {
	case string:
		if len(value) > longText {
			return ""
		}
	case []any:
		short := make([]any, min(len(value), longList))
		for i := range short {
			short[i] = shortened(value[i])
		}
		return short
	case map[string]any:
		short := make(map[string]any, len(value))
		for name, item := range value {
			short[name] = shortened(item)
		}
		return short
	}
	return value
}
