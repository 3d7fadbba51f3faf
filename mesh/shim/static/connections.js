// The button that runs the connection test. What it finds comes by the page itself, to all readers.

const button = document.getElementById("run");
button.hidden = false;

button.addEventListener("click", async () => {
  button.disabled = true;
  button.textContent = "Testing …";
  try {
    const answer = await fetch(button.dataset.url, { headers: { accept: "text/event-stream" } });
    const reader = answer.body.getReader();
    while (!(await reader.read()).done);
  } catch {
    document.getElementById("last-run").textContent = "The test was broken off: this server is away.";
  } finally {
    button.disabled = false;
    button.textContent = "Run the test";
  }
});
