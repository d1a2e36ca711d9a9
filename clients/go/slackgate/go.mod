module github.com/oncegate/oncegate/clients/go/slackgate

go 1.26

require (
	github.com/gorilla/websocket v1.5.3
	github.com/oncegate/oncegate/clients/go v0.0.0
	github.com/slack-go/slack v0.35.0
	go.uber.org/goleak v1.3.0
)

require (
	golang.org/x/net v0.57.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
	golang.org/x/text v0.40.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260706201446-f0a921348800 // indirect
	google.golang.org/grpc v1.84.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

// Of a clone; a module that requires this one does not see it.
replace github.com/oncegate/oncegate/clients/go => ../
