// For React: says how the user is for as long as a component is mounted, and tells the component.
//
//   const status = usePresenceHeartbeat({ url, userId, accessToken });
//
// Nothing is said without a user id.
import { useEffect, useState } from "react";
import { startPresenceHeartbeat } from "./presence.js";

export function usePresenceHeartbeat({ url, userId, accessToken, statusMessage, onError }) {
  const [status, setStatus] = useState("offline");
  useEffect(() => {
    if (!userId) return undefined;
    return startPresenceHeartbeat({
      url, userId, accessToken, statusMessage, onError, onStatus: setStatus,
    });
    // Another message or handler is no reason to begin anew.
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [url, userId, accessToken]);
  return status;
}
