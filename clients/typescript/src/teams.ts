import { type Body, type Delivery, type PayloadOptions, platformDelivery } from "./delivery.js";
import { Platform } from "./gen/oncegate/v1/delivery_pb.js";

/** An activity of Microsoft Teams. */
export function delivery(body: Body, options: PayloadOptions = {}): Delivery {
  return platformDelivery(Platform.TEAMS, {}, body, options);
}
