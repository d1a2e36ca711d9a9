import {
  type Body,
  type Delivery,
  type HeaderInit,
  header,
  type PayloadOptions,
  platformDelivery,
} from "./delivery.js";
import { Platform } from "./gen/oncegate/v1/delivery_pb.js";

const deliveryId = "x-github-delivery";

/**
 * A webhook of GitHub. Verify the signature first. All webhooks of a repository get the same
 * delivery id: with several apps, set the gate's `consumer`, or `options.consumer` to the header
 * `X-GitHub-Hook-ID`.
 */
export function delivery(headers: HeaderInit, body: Body, options: PayloadOptions = {}): Delivery {
  return platformDelivery(
    Platform.GITHUB,
    { [deliveryId]: header(headers, deliveryId) ?? "" },
    body,
    options,
    // GitHub redelivers on request only.
    { ttl: "168h", redelivers: false },
  );
}
