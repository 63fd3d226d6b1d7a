// A browser starts no worker from a file on the disk (file://). There, the search of the site runs in a hidden frame.
// The theme knows such a worker by the name IFrameWorker, and the offline plugin by the name of this file.
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data })))
      const script = this.inside.document.createElement("script")
      script.src = url
      this.ready = new Promise((resolve, reject) => Object.assign(script, { onload: resolve, onerror: reject }))
      this.inside.document.body.append(script)
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })))
    }

    terminate() {
      this.inside.frameElement.remove()
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker
}
