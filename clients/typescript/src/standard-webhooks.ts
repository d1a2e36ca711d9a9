import {
  type Body,
  type Delivery,
  type HeaderInit,
  header,
  type PayloadOptions,
  platformDelivery,
} from "./delivery.js";
import { Platform } from "./gen/oncegate/v1/delivery_pb.js";

const webhookId = "webhook-id";

/** A webhook of any sender that follows standardwebhooks.com. It does not name a tenant: `team` does. */
export function delivery(
  headers: HeaderInit,
  body: Body,
  options: PayloadOptions & { team: string },
): Delivery {
  return platformDelivery(
    Platform.STANDARD_WEBHOOKS,
    { [webhookId]: header(headers, webhookId) ?? "" },
    body,
    options,
    { ttl: "168h" },
  );
}
