package oncegate

import (
	"time"

	pb "github.com/oncegate/oncegate/clients/go/internal/pb/oncegate/v1"
)

// A Delivery is one delivery of an event: what names the event and its conversation, and whether its sender
// redelivers. [Slack], [GitHub] and so on make one of a platform's payload.
type Delivery struct {
	// Team is the tenant. May be empty if a payload names it.
	Team string
	// Event is the event's id. Empty if there is a payload.
	Event string
	// Session is the conversation. Without one, only the event is claimed; a payload names its own.
	Session Session
	// Scope: how much of a payload's conversation is one session.
	Scope Scope
	// Aliases are other names of the same event, at most 8.
	Aliases []string
	// Digest of the payload, at most 32 bytes: another payload under the same name is ErrPayloadMismatch.
	Digest []byte
	// TTL: how long the event stays processed. 1 s to 30 days; 0: 24 h.
	TTL time.Duration
	// SentOnce: the sender does not deliver again what was refused.
	SentOnce bool
	// EachUse, for Slack interactions: every click is an event of its own. Otherwise a second click of
	// the same user on the same button is the same event.
	EachUse bool
	// Consumer is the application that handles the event. Empty: the gate's.
	Consumer string

	payload *payload
}

// A Session is a conversation of a tenant: by an id of the caller's, or by a channel and a thread.
type Session struct {
	// Team is the tenant. In a [Delivery] it may be empty: it is the event's.
	Team string
	ID   string
	// Channel and Thread, the timestamp or id of the thread's first message, instead of an ID.
	Channel, Thread string
}

// Thread is a channel's thread, by the timestamp or id of its first message.
func Thread(team, channel, ts string) Session {
	return Session{Team: team, Channel: channel, Thread: ts}
}

// Scope is how much of a payload's conversation is one session.
type Scope int

// The scopes.
const (
	// ThreadScope: the thread.
	ThreadScope Scope = iota
	// ChannelScope: the whole channel.
	ChannelScope
	// UserScope: everything that one user does.
	UserScope
	// EventScope: no session; the event alone is claimed.
	EventScope
)

var scopes = [...]pb.SessionScope{
	pb.SessionScope_SESSION_SCOPE_THREAD,
	pb.SessionScope_SESSION_SCOPE_CHANNEL,
	pb.SessionScope_SESSION_SCOPE_USER,
}

// kind is the platform, for logs.
func (d *Delivery) kind() string {
	if d.payload == nil {
		return "delivery"
	}
	return d.payload.platform.String()[len("PLATFORM_"):]
}

func (d *Delivery) eventKey(consumer string) *pb.EventKey {
	key := &pb.EventKey{
		TeamId:   d.Team,
		Aliases:  d.Aliases,
		Consumer: orElse(d.Consumer, consumer),
		EachUse:  d.EachUse,
	}
	switch {
	case d.payload == nil:
		key.Key = &pb.EventKey_EventId{EventId: d.Event}
	case d.payload.platform == pb.Platform_PLATFORM_SLACK:
		key.Key = &pb.EventKey_SlackPayload{SlackPayload: d.payload.body}
	default:
		key.Key = &pb.EventKey_Delivery{Delivery: &pb.Delivery{
			Platform: d.payload.platform, Headers: d.payload.headers, Body: d.payload.body,
		}}
	}
	return key
}

// sessionKey is the conversation in a request that also has the event.
func (d *Delivery) sessionKey(consumer string) *pb.SessionKey {
	if d.Session != (Session{}) {
		session := d.Session
		session.Team = orElse(session.Team, d.Team)
		return session.key(consumer)
	}
	if d.payload == nil || d.Scope == EventScope {
		return nil
	}
	key := &pb.SessionKey{Consumer: consumer, Scope: scopes[d.Scope]}
	// The event in the same request has the payload: it is sent once.
	if d.payload.platform == pb.Platform_PLATFORM_SLACK {
		key.Key = &pb.SessionKey_SlackPayload{}
	} else {
		key.Key = &pb.SessionKey_Delivery{Delivery: &pb.Delivery{}}
	}
	return key
}

func (s Session) key(consumer string) *pb.SessionKey {
	key := &pb.SessionKey{TeamId: s.Team, Consumer: consumer}
	if s.Channel != "" {
		key.Key = &pb.SessionKey_Thread{Thread: &pb.ThreadKey{ChannelId: s.Channel, ThreadTs: s.Thread}}
	} else {
		key.Key = &pb.SessionKey_SessionId{SessionId: s.ID}
	}
	return key
}
