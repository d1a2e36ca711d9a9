//! One binary of tests, so that they are linked once and share one cluster.
//! Every test has a database of its own, real servers on free ports, and runs
//! beside the others.

mod auth;
mod cli;
mod conformance;
mod connect;
mod contention;
mod cost;
mod differential;
mod docs;
mod doctor;
mod fairness;
mod faults;
mod fuzzing;
mod grpc;
mod harness;
mod hold;
mod known;
mod layering;
mod losses;
mod memory;
mod platforms;
mod queue;
mod readme;
mod reasons;
mod reference;
mod restore;
mod schema;
mod shutdown;
mod simulation;
mod streams;
mod telemetry;
mod testbed;
mod tls;
mod wording;
mod workspace;
